// Swagger UI over the service's own description. Nothing is asked of others: its validator would be sent the address.
window.SwaggerUIBundle({ url: "/openapi.json", dom_id: "#docs", deepLinking: true, validatorUrl: null });

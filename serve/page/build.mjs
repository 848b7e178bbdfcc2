// Bundles the viewer and copies Swagger UI into dist/; everything else of the page is served as it is.
import { build } from "esbuild";
import { copyFile, rename, stat } from "node:fs/promises";

await build({
  entryPoints: ["entry.mjs"], outfile: "dist/.viewer.js", bundle: true, format: "esm", minify: true, target: "es2022",
  legalComments: "inline", logLevel: "warning",
});
const made = ["viewer.js"];
for (const name of ["swagger-ui.css", "swagger-ui-bundle.js", "swagger-ui-bundle.js.LICENSE.txt"]) {
  await copyFile(`node_modules/swagger-ui-dist/${name}`, `dist/.${name}`);
  made.push(name);
}
for (const name of made) {
  await rename(`dist/.${name}`, `dist/${name}`);  // whole or absent: the service looks for it at each request
  console.log(`dist/${name}, ${Math.round((await stat(`dist/${name}`)).size / 1024)} kB`);
}

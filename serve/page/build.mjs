// Bundles the viewer into dist/; everything else of the page is served as it is.
import { build } from "esbuild";
import { rename, stat } from "node:fs/promises";

await build({
  entryPoints: ["entry.mjs"], outfile: "dist/.viewer.js", bundle: true, format: "esm", minify: true, target: "es2022",
  legalComments: "inline", logLevel: "warning",
});
await rename("dist/.viewer.js", "dist/viewer.js");  // whole or absent: the service looks for it at each request
console.log(`dist/viewer.js, ${Math.round((await stat("dist/viewer.js")).size / 1024)} kB`);

// Puts the module and its JavaScript into the page, which then is one file:
//
//     node page.mjs TPVIT.wasm PAGE.html
import { readFileSync, writeFileSync } from "node:fs";

const [wasm, out] = process.argv.slice(2);
const beside = (name) => readFileSync(new URL(name, import.meta.url), "utf8");
const script = beside("tpvit.mjs").replaceAll("export class", "class");
// A function, so that no `$` of the text has a meaning.
const page = beside("page.html")
  .replace("/*TPVIT*/", () => script)
  .replace("/*WASM*/", () => readFileSync(wasm).toString("base64"));
writeFileSync(out, page);

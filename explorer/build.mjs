// Writes ../tsd_jax/search/explorer.html from src/: npm ci && npm run build
//
// The page holds a digest of its sources, which tests/explorer_test.py compares,
// and in its policy the digests of its one script and one style.
import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { buildSync } from "esbuild";

const here = (name) => new URL(name, import.meta.url);
const read = (name) => readFileSync(here(name), "utf8");

function bundle(entry) {
  const { outputFiles } = buildSync({
    absWorkingDir: new URL(".", import.meta.url).pathname,
    entryPoints: [entry],
    bundle: true,
    minify: true,
    write: false,
    charset: "ascii",
    legalComments: "none",
    target: ["es2022", "chrome110", "firefox115", "safari16"],
  });
  return outputFiles[0].text.trim().replaceAll("</", "<\\/");
}

const sources = [
  "build.mjs",
  "package-lock.json",
  "package.json",
  ...readdirSync(here("src")).sort().map((name) => `src/${name}`),
];
const digest = createHash("sha256");
for (const name of sources) digest.update(`${name}\n${read(name)}\n`);

const hash = (text) =>
  `sha256-${createHash("sha256").update(text).digest("base64")}`;
const style = bundle("src/style.css");
const script = bundle("src/main.js");
const parts = {
  SCRIPT_HASH: hash(script),
  STYLE_HASH: hash(style),
  SOURCES: digest.digest("hex"),
  STYLE: style,
  SCRIPT: script,
};
const page = read("src/page.html").replaceAll(
  /\{\{(\w+)\}\}/g,
  (_, name) => parts[name],
);
if (page.split("__TREES__").length !== 2) throw new Error("one place for data");
const notice = "<!-- d3-zoom and what it needs: Copyright Mike Bostock, ISC. -->\n";
writeFileSync(
  here("../tsd_jax/search/explorer.html"),
  page.replace("<html", `${notice}<html`),
);
console.log(`explorer.html: ${page.length} characters`);

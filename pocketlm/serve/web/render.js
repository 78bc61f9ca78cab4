// An answer's text as nodes: Markdown, mathematics and code. Nothing in it can run: Markdown
// escapes HTML, DOMPurify removes what is left, and mathematics and code are set afterwards, from
// text.

const md = markdownit({html: false, linkify: false, breaks: true}).disable("image");
md.use(mathematics);

export function rendered(text) {
  const clean = DOMPurify.sanitize(md.render(text), {
    USE_PROFILES: {html: true},
    FORBID_TAGS: ["style", "form", "input", "button"],
    FORBID_ATTR: ["style", "id"],
    ALLOW_DATA_ATTR: true,
    RETURN_DOM_FRAGMENT: true,
  });
  for (const span of clean.querySelectorAll("[data-tex]")) {
    katex.render(span.dataset.tex, span, {
      displayMode: span.dataset.display === "yes",
      throwOnError: false,
      trust: false,
      maxExpand: 1000,
      maxSize: 20,
    });
  }
  for (const code of clean.querySelectorAll("pre code")) {
    const language = /language-([\w+-]+)/.exec(code.className)?.[1];
    if (language && hljs.getLanguage(language)) hljs.highlightElement(code);
  }
  for (const link of clean.querySelectorAll("a[href]")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  for (const table of clean.querySelectorAll("table")) {
    const frame = document.createElement("div");
    frame.className = "scroll";
    frame.tabIndex = 0;
    table.replaceWith(frame);
    frame.append(table);
  }
  return clean;
}

// The last \boxed{...} of a text, with the braces inside it matched; null where there is none.
export function boxed(text) {
  const start = text.lastIndexOf("\\boxed{");
  if (start < 0) return null;
  let depth = 0;
  for (let at = start + 6; at < text.length; at++) {
    if (text[at] === "{") depth++;
    if (text[at] === "}" && --depth === 0) return text.slice(start + 7, at);
  }
  return null;
}

// A plugin: $x$, $$x$$, \(x\), \[x\], over several lines too. A lone dollar, or one with a space
// after it, is a dollar.
function mathematics(parser) {
  const pairs = [["$$", "$$", true], ["\\[", "\\]", true], ["\\(", "\\)", false], ["$", "$", false]];
  const html = (tex, display) =>
    `<span class="math" data-tex="${parser.utils.escapeHtml(tex)}"` +
    ` data-display="${display ? "yes" : "no"}"></span>`;

  function inline(state, silent) {
    for (const [open, close, display] of pairs) {
      if (!state.src.startsWith(open, state.pos)) continue;
      const from = state.pos + open.length;
      const end = state.src.indexOf(close, from);
      if (end < from + 1) continue;
      const tex = state.src.slice(from, end);
      if (open === "$" && (/^\s|\s$/.test(tex) || /\d/.test(state.src[end + 1] ?? ""))) continue;
      if (!silent) {
        const token = state.push("math", "", 0);
        token.content = tex;
        token.meta = {display};
      }
      state.pos = end + close.length;
      return true;
    }
    return false;
  }

  function block(state, startLine, endLine, silent) {
    const begin = state.bMarks[startLine] + state.tShift[startLine];
    const pair = pairs.slice(0, 2).find(([open]) => state.src.startsWith(open, begin));
    if (!pair) return false;
    const end = state.src.indexOf(pair[1], begin + 2);
    if (end < 0 || end > state.eMarks[endLine - 1]) return false;
    let line = startLine;
    while (state.eMarks[line] < end) line++;
    if (state.src.slice(end + 2, state.eMarks[line]).trim()) return false;
    if (silent) return true;
    const token = state.push("math", "", 0);
    token.content = state.src.slice(begin + 2, end);
    token.meta = {display: true};
    token.block = true;
    state.line = line + 1;
    return true;
  }

  parser.inline.ruler.before("escape", "math", inline);
  parser.block.ruler.before("fence", "math", block, {alt: ["paragraph", "blockquote", "list"]});
  parser.renderer.rules.math = (tokens, index) =>
    html(tokens[index].content, tokens[index].meta.display);
}

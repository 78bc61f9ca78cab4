"""How the page looks. Its colours are Okabe and Ito's, which colour-blind readers tell apart."""

# in the order in which a chart takes them
COLOURS = ("c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8")

CSS = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --text: #1b1f24; --quiet: #59636e; --line: #d5dae0; --faint: #f2f4f7;
    --rest: #b3bac3;
  --c1: #0072b2; --c2: #e69f00; --c3: #009e73; --c4: #d55e00; --c5: #56b4e9; --c6: #b1568c;
    --c7: #8a6d00;
  --c8: #5b5ea6; --good: #00704f; --bad: #b34700;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --text: #e4e7eb; --quiet: #9aa4af; --line: #343b44; --faint: #1e2329;
      --rest: #5f6873;
    --c1: #4aa8e0; --c2: #f0b73d; --c3: #2fc79a; --c4: #f2803a; --c5: #8fd0f5; --c6: #de8fbd;
      --c7: #c9ab4a;
    --c8: #9a9de0; --good: #3ad0a3; --bad: #ff9a5c;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.55 system-ui,
  -apple-system,
  "Segoe UI",
  Roboto, "Helvetica Neue", sans-serif; -webkit-text-size-adjust: 100%; }
main, footer { max-width: 66rem; margin: 0 auto; padding: 0 1.25rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 2.2rem 0 .6rem; letter-spacing: -.01em; text-wrap:
  balance; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 3.2rem 0 .6rem; padding-top: .9rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.8rem 0 .5rem; }
section:first-of-type h2 { position: absolute; clip-path: inset(50%); width: 1px; height: 1px;
  overflow:
  hidden;
  white-space: nowrap; }
p, .legend { max-width: 46rem; margin: .6rem 0; }
.lead { font-size: 1.13rem; }
.quiet, figcaption, footer { color: var(--quiet); font-size: .9rem; }
footer { padding-top: 1rem; padding-bottom: 2.5rem; margin-top: 3rem;
  border-top: 1px solid var(--line); }
a { color: var(--c1); }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; padding: 0;
  margin: 1.6rem
  0 0;
  font-size: .93rem; }
.scroll { overflow-x: auto; margin: .9rem 0; background:
  linear-gradient(to left, var(--page) 40%, transparent) right / 2.5rem 100% no-repeat local,
  linear-gradient(to left, var(--line), transparent) right / .9rem 100% no-repeat scroll; }
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--c1); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .9rem; line-height: 1.35; }
table.full { width: 100%; }
th, td { padding: .38rem .6rem; text-align: left; vertical-align: middle; border-bottom: 1px solid
  var(--line); }
thead th { color: var(--quiet); font-weight: 500; font-size: .82rem; vertical-align: bottom; }
tbody th { font-weight: 550; white-space: nowrap; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
table.sticky tbody th, table.sticky thead th:first-child { position: sticky; left: 0; background:
  var(--page); }
thead th.n { white-space: normal; } thead th span { white-space: nowrap; }
.origin { min-width: 10.5rem; }
table.goals tbody th { white-space: normal; }
tr.apart th, tr.apart td { border-top: 2px solid var(--line); color: var(--quiet); }
.heat { background: color-mix(in srgb, var(--c1) calc(var(--heat) * .34), transparent); }
.met { color: var(--good); font-weight: 650; white-space: nowrap; }
.missed { color: var(--bad); font-weight: 650; white-space: nowrap; }
.bar { width: 100%; min-width: 10rem; padding-left: .3rem; padding-right: .3rem; }
.bar svg { display: block; width: 100%; background: var(--faint); border-radius: 2px; }
td.bar svg + svg { margin-top: 2px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 13rem), 1fr));
  gap: .8rem;
  margin: 1.2rem 0; padding: 0; list-style: none; }
.tiles li { background: var(--faint); border-radius: 8px; padding: .8rem 1rem; }
.tiles b { display: block; font-size: 1.65rem; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.tiles span { display: block; color: var(--quiet); font-size: .88rem; }
.tiles span.file { color: var(--text); font-weight: 600; overflow-wrap: anywhere; }
.multiples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17.5rem),
  1fr));
  gap: 1.2rem 1.4rem; margin: 1rem 0; }
figure { margin: 0; break-inside: avoid; }
figure svg { display: block; width: 100%; height: auto; }
figure.one { max-width: 24rem; margin: 1rem 0; }
figcaption strong { color: var(--text); }
svg text { fill: var(--quiet); font-size: 11px; font-variant-numeric: tabular-nums; }
svg text.strong { fill: var(--text); font-weight: 600; paint-order: stroke; stroke: var(--page);
  stroke-width: 3.5px; stroke-linejoin: round; }
svg text.cell { fill: var(--text); }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .zero { stroke: var(--quiet); stroke-width: 1; }
svg .raw { fill: none; stroke: var(--c1); stroke-width: 1; opacity: .32; }
svg .line { fill: none; stroke: var(--own); stroke-width: 2.5; stroke-linejoin: round; }
.wide-picture svg { min-width: 34rem; }
td.added { min-width: 15rem; max-width: 26rem; }
svg .curve { fill: none; stroke: var(--c1); stroke-width: 2; stroke-linejoin: round; }
svg .rate { fill: none; stroke: var(--c2); stroke-width: 1.2; stroke-dasharray: 4 3; }
svg text.rate { fill: var(--quiet); stroke: none; }
svg .mark { fill: var(--page); stroke: var(--own); stroke-width: 2.5; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; padding: 0;
  font-size:
  .88rem; }
.swatch { display: inline-block; width: .75em; height: .75em; border-radius: 2px;
  margin-right: .4em;
  background: var(--own); }
.rest { --own: var(--rest); }
.c1 { --own: var(--c1); } .c2 { --own: var(--c2); } .c3 { --own: var(--c3); }
.c4 { --own: var(--c4); }
.c5 { --own: var(--c5); } .c6 { --own: var(--c6); } .c7 { --own: var(--c7); }
.c8 { --own: var(--c8); }
svg rect, svg .dot { fill: var(--own); }
details { border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0; padding: .1rem .9rem;
  }
summary { cursor: pointer; padding: .4rem 0; font-weight: 550; }
summary small { color: var(--quiet); font-weight: 400; }
pre, code { font: .84rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { margin: .4rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap:
  .9rem; margin: 1rem 0; }
.card { background: var(--faint); border-radius: 8px; padding: .7rem 1rem; break-inside: avoid;
  min-width: 0; }
.card p { margin: .2rem 0; font-size: .88rem; }
.card pre + pre { border-top: 1px solid var(--line); padding-top: .4rem; }
dl.dropped dt { font-weight: 550; margin-top: .7rem; }
dl.dropped dd { margin: .25rem 0 .25rem 0; padding-left: .8rem; border-left: 3px solid var(--line);
  color: var(--quiet);
  font-size: .86rem; overflow-wrap: anywhere; }
@media (max-width: 30rem) {
  h1 { font-size: 1.55rem; } main, footer { padding: 0 1rem; } th, td { padding: .35rem .45rem; }
  .bar { min-width: 7rem; } .hide-narrow { display: none; }
}
@media (max-width: 44rem) {
  .goals thead { display: none; }
  .goals, .goals tbody, .goals tr, .goals th { display: block; }
  .goals tr { padding: .5rem 0; border-bottom: 1px solid var(--line); }
  .goals tbody th, .goals tbody td { border: 0; padding: .1rem .9rem .1rem .45rem;
    white-space: normal; }
  .goals tbody td { display: inline-block; text-align: left; }
  .goals td[data-heading]::before { content: attr(data-heading) " "; color: var(--quiet); }
}
@media print {
  @page { margin: 14mm; }
  :root { --page: #fff; --text: #000; --quiet: #444; --line: #bbb; --faint: #f4f4f4; --rest: #aaa;
  --good: #00593e;
    --bad: #8f3900; --c1: #0072b2; --c2: #e69f00; --c3: #009e73; --c4: #d55e00; --c5: #56b4e9; --c6:
  #b1568c;
    --c7: #8a6d00; --c8: #5b5ea6; }
  body { font-size: 10.5pt; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main, footer { max-width: none; padding: 0; }
  nav { display: none; } h2, h3 { break-after: avoid; } tr { break-inside: avoid; }
  .scroll { overflow: visible; } table.wide { font-size: 6.4pt; }
  table.wide thead th, table.wide tbody th, table.wide td { padding: .12rem .16rem;
    font-size: inherit; }
  table.sticky tbody th, table.sticky thead th:first-child { position: static; white-space: normal;
    }
}
"""

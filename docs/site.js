// What is wider than the page scrolls by keyboard too.
const wide = ".md-typeset__scrollwrap, .md-typeset pre > code";
const reachable = () => document.querySelectorAll(wide).forEach((box) => {
  if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
});
addEventListener("load", reachable);
addEventListener("resize", reachable);

// Ranks a page first whose title has a word of the query; otherwise as Sphinx does.
var Scorer = {
  score: (result) => {
    const [, title, anchor, , score] = result;
    const words = (new URLSearchParams(window.location.search).get("q") || "").toLowerCase().split(/\s+/);
    const stems = words.filter((word) => word.length > 2).map((word) => word.slice(0, 5));
    const named = stems.filter((stem) => title.toLowerCase().includes(stem)).length;
    return score + (anchor ? 0 : 30 * named);
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};

// The chart of the page Speech: how long first words and final text took, over the session. Pure: points in, nodes out.
"use strict";
// `first` and `final`: [second of the session, ms] each; `say`: the page's texts. The chart, and what its marks mean.
const millstreamLatency = (first, final, say) => {
  const node = (tag, className, textContent = "") =>
    Object.assign(document.createElement(tag), { className, textContent });
  const [width, height, left, bottom] = [320, 130, 38, 18];
  const drawing = (tag, attributes, text = "") => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.textContent = text;
    return made;
  };
  const chart = drawing("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img" });
  const points = [...first, ...final];
  const most = [100, 250, 500, 1000, 2000, 4000, 8000, 16000].find((one) => points.every(([, ms]) => ms <= one)) || 32000;
  const from = points.length ? Math.min(...points.map(([at]) => at)) : 0;
  const until = Math.max(from + 10, ...points.map(([at]) => at));
  const y = (ms) => height - bottom - (Math.min(ms, most) / most) * (height - bottom - 10);
  for (const ms of [0, most / 2, most]) {
    chart.append(drawing("line", { class: "grid", x1: left, x2: width, y1: y(ms), y2: y(ms) }));
    chart.append(drawing("text", { x: left - 5, y: y(ms) + 4, "text-anchor": "end" }, ms < 1000 ? `${ms}` : `${ms / 1000} s`));
  }
  for (const [at, x, anchor] of [[from, left, "start"], [until, width, "end"]]) {
    chart.append(drawing("text", { x, y: height - 3, "text-anchor": anchor }, `${Math.round(at)} s`));
  }
  const legend = node("div", "legend speech-legend");
  for (const [name, of, colour] of [["first", first, "one"], ["final", final, "two"]]) {
    const all = drawing("g", { class: colour });
    for (const [at, ms] of of) {
      const x = left + 6 + ((at - from) / (until - from)) * (width - left - 12);
      // A ring and a square: not told apart by colour alone.
      if (name === "first") all.append(drawing("circle", { cx: x, cy: y(ms), r: 3.5 }));
      else all.append(drawing("rect", { class: "bar", x: x - 3, y: y(ms) - 3, width: 6, height: 6 }));
    }
    chart.append(all);
    const sorted = of.map(([, ms]) => ms).sort((a, b) => a - b);
    const middle = sorted.length ? say("median", { ms: Math.round(sorted[sorted.length >> 1]), count: sorted.length }) : "–";
    const said = node("span", colour);
    said.append(node("span", `swatch ${name}`), `${say(name)}: `, node("span", `speech-${name}`, middle));
    legend.append(said);
  }
  chart.setAttribute("aria-label", legend.textContent);
  return [chart, legend];
};

// The values under the pointer, or where the arrow keys went. All that is drawn is there without it.
for (const svg of document.querySelectorAll("svg[data-plot]")) {
  const [left, right, first, last] = svg.dataset.plot.split(" ").map(Number);
  const legend = svg.nextElementSibling, at = legend.querySelector(".at"), cursor = svg.querySelector(".cursor");
  const values = [...legend.querySelectorAll("b")], ends = values.map(b => b.textContent);
  const rows = svg.querySelectorAll("[data-turn]");
  let curves, step = null;
  const read = () => curves ??= [...svg.querySelectorAll("[data-p]")].map(e => {
    const words = e.dataset.p.split(" "), points = [];
    for (let i = 0; i + 1 < words.length; i += 2) points.push([Number(words[i]), words[i + 1]]);
    return points;
  });
  const nearest = points => points.reduce((a, b) => Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a, points[0]);
  const show = y => {
    cursor.style.visibility = "visible";
    cursor.style.transform = `translateX(${left + (step - first) / (last - first) * (right - left)}px)`;
    at.textContent = `step ${step}`;
    if (!rows.length) return read().forEach((points, i) => { if (values[i]) values[i].textContent = nearest(points)[1]; });
    const turn = Math.min(rows.length - 1, Math.max(0, Math.floor(y * rows.length)));
    const points = read()[turn];
    at.textContent = `step ${step}, turn ${turn}: ${points[0]?.length ? nearest(points)[1] : "none"}`;
  };
  const hide = () => {
    cursor.style.visibility = "";
    at.textContent = "";
    step = null;
    values.forEach((b, i) => { b.textContent = ends[i]; });
  };
  svg.addEventListener("pointermove", e => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    const share = ((e.clientX - box.left) * scale - left) / (right - left);
    step = Math.round(first + Math.min(1, Math.max(0, share)) * (last - first));
    show(((e.clientY - box.top) * scale - 22) / 144);
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", e => {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
    if (!way) return;
    e.preventDefault();
    step = Math.min(last, Math.max(first, (step ?? last) + way * Math.max(1, Math.round((last - first) / 100))));
    show(0);
  });
}

"""The report and the site in a real browser: on a phone and a screen, light and dark, on paper.

``ETUDE_SCREENSHOTS=folder make test-browser`` leaves pictures there to look at.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from browser.chromium import Browser, Tab, opened
from etude.journal.report.report import write_report
from etude.journal.site import render_site
from run_folders import HOSTILE, write_run

WIDTHS = (390, 1280)
SCHEMES = ("light", "dark")

# Texts with the contrast to the nearest ground below them that is painted; what is transparent lets through.
_CONTRASTS = """(() => {
  const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const linear = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const color = parse(getComputedStyle(node).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const node of document.querySelectorAll("body *:not(svg *)")) {
    if (![...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim())) continue;
    if (!node.checkVisibility() || ["SCRIPT", "STYLE"].includes(node.tagName)) continue;
    const [one, other] = [parse(getComputedStyle(node).color), ground(node)].map(luminance);
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) bad.push(`${node.tagName} ${node.textContent.trim().slice(0, 40)} ${ratio.toFixed(2)}`);
  }
  return bad;
})()"""

# Elements that stick out of the window and stand in no box that scrolls.
_OVERFLOWING = """(() => {
  const wide = document.documentElement.clientWidth + 1;
  const bad = [];
  for (const node of document.querySelectorAll("body *")) {
    if (node.getBoundingClientRect().right <= wide || !node.checkVisibility()) continue;
    if (node.closest(".scroll, nav ul, pre, .hidden")) continue;
    bad.push(`${node.tagName}.${node.className.baseVal ?? node.className} ${node.textContent.trim().slice(0, 30)}`);
  }
  return [bad, document.documentElement.scrollWidth <= wide];
})()"""


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs with plain and with hostile names, their reports, and the site over them."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(4):
        write_report(write_run(folder / f"run-{seed}", seed=seed, count=120 + 40 * seed, tags=["baseline"]))
    write_report(write_run(folder / "hostile", HOSTILE, tags_of_data="<b>of others</b>"))
    render_site(folder, folder / "index.html")
    return folder


def keep(tab: Tab, name: str) -> None:
    if kept := os.environ.get("ETUDE_SCREENSHOTS"):
        tab.screenshot(Path(kept) / f"{name}.png")


@pytest.mark.parametrize("page", ["run-0/report.html", "hostile/report.html", "index.html"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_page_is_quiet_asks_for_nothing_and_fits(chromium: Browser, runs: Path, page: str, width: int, scheme: str):
    file = runs / page
    with opened(chromium, file, width=width, dark=scheme == "dark") as tab:
        tab.run("document.querySelectorAll('details').forEach((one) => one.open = true)")
        keep(tab, f"{page.replace('/', '-').removesuffix('.html')}-{width}-{scheme}")
        assert tab.said() == []
        asked = [address for address in tab.requests() if not address.startswith("data:")]
        assert asked == [file.resolve().as_uri()]
        overflowing, fits = tab.run(_OVERFLOWING)
        assert overflowing == []
        assert fits
        assert tab.run(_CONTRASTS) == []
        assert tab.run("document.title") != "hit"
        dark = tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(15, 20, 26)"
        assert dark == (scheme == "dark")


def test_names_with_markup_are_shown_as_texts(chromium: Browser, runs: Path):
    with opened(chromium, runs / "hostile" / "report.html") as tab:
        shown = tab.run("document.body.innerText")
        assert all(name in shown for name in HOSTILE)
        assert tab.run("document.querySelectorAll('script, b, [onerror]').length") == 0


def test_a_page_could_not_ask_even_if_markup_slipped_through(chromium: Browser, tmp_path: Path, runs: Path):
    page = (runs / "run-0" / "report.html").read_text(encoding="utf-8")
    worse = tmp_path / "worse.html"
    attack = (
        "<script>document.title='hit'</script><img src='https://example.org/x.png' onerror=\"document.title='hit'\">"
    )
    worse.write_text(page.replace("</main>", f"{attack}</main>"), encoding="utf-8")
    with opened(chromium, worse) as tab:
        assert tab.run("document.title") != "hit"
        assert tab.refused() == [address for address in tab.requests() if address.startswith("http")]
        assert len(tab.refused()) == 1
        assert any("Content Security Policy" in told for told in tab.said())


def test_texts_of_charts_are_large_enough_on_a_phone(chromium: Browser, runs: Path):
    with opened(chromium, runs / "run-0" / "report.html", width=390) as tab:
        script = """[...document.querySelectorAll('svg')].filter((one) => one.querySelector('text')).map((one) =>
            one.getBoundingClientRect().width / one.viewBox.baseVal.width * 12)"""
        sizes = tab.run(script)
        assert len(sizes) > 6
        assert min(sizes) >= 10.5


def test_it_prints_light_with_everything_open(chromium: Browser, runs: Path):
    with opened(chromium, runs / "run-0" / "report.html", dark=True) as tab:
        assert len(tab.printed()) > 20_000
        chromium.ask("Emulation.setEmulatedMedia", tab.session, media="print")
        assert tab.run("getComputedStyle(document.documentElement).getPropertyValue('--ink').trim()") == "#17202b"
        assert tab.run("getComputedStyle(document.querySelector('nav')).display") == "none"
        assert tab.run("document.querySelector('details table').checkVisibility({contentVisibilityAuto: true})")


def test_the_site_sorts_and_searches(chromium: Browser, runs: Path):
    first = "document.querySelector('#runs tbody tr:not([hidden]) a').textContent"
    visible = "document.querySelectorAll('#runs tbody tr:not([hidden])').length"

    def search(words: str) -> int:
        tab.run(f"(() => {{ const one = document.getElementById('words'); one.value = {words!r};"
                "one.dispatchEvent(new Event('input')); })()")  # fmt: skip
        return tab.run(visible)

    with opened(chromium, runs / "index.html") as tab:
        click = "document.querySelectorAll('#runs th button')[{}].click()"
        column = "[...document.querySelectorAll('#runs tbody tr')].map((row) => row.cells[{}].dataset.value)"
        tab.run(click.format(1))
        accuracies = [float(value) for value in tab.run(column.format(1))]
        assert accuracies == sorted(accuracies, reverse=True)
        tab.run(click.format(1))
        assert [float(value) for value in tab.run(column.format(1))] == sorted(accuracies)
        tab.run(click.format(0))
        assert tab.run(first) == "hostile"
        assert tab.run(visible) == 5
        assert search("#baseline run-2") == 1
        assert tab.run(first) == "run-2"
        assert tab.run("document.getElementById('shown').textContent") == "1 runs"
        assert search("etude fit others") == 1  # from the command, which the table does not show
        assert search("nothing of the kind") == 0
        assert search("") == 5
        tab.run("(() => { const one = document.getElementById('data'); one.value = 'c880';"
                "one.dispatchEvent(new Event('change')); })()")  # fmt: skip
        assert tab.run(visible) == 4
        assert tab.said() == []

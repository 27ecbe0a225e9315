"""The report in a real browser: it draws, sorts and slides without a word on the console, on a desk and on a phone."""

import shutil
import time
from pathlib import Path

import pytest

from jax_advtrain import config as configs
from jax_advtrain.studies import reporting
from jax_advtrain.training import workdir
from jax_advtrain.training.display import Display

pytestmark = pytest.mark.slow
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
HOSTILE = '</script><script>document.title="broken"</script>'


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium or chromedriver is not here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for one in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(one)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.fixture(scope="module")
def page(finished_run, tmp_path_factory) -> Path:
    """The report of a finished run whose classes have names that would break out of a careless page."""
    folder = tmp_path_factory.mktemp("browser") / "a & <b>"
    shutil.copytree(finished_run, folder, ignore=shutil.ignore_patterns("checkpoints", "events"))
    path = folder / "eval" / "best" / "results.json"
    content = workdir.read_json(path)
    content["model"]["class_names"] = [HOSTILE, "<img src=x onerror=alert(1)>", *map(str, range(2, 10))]
    workdir.write_json(path, content)
    reporting.report_run(configs.from_plain(workdir.read_config(folder)), folder, Display())
    return folder / "report.html"


def opened(browser, page: Path, width: int, scheme: str = "light") -> None:
    """Opens the page and waits until all charts are drawn."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    set_scheme(browser, scheme)
    browser.get(page.as_uri())
    wait(browser, f"return document.documentElement.dataset.drawn === '{scheme}'")


def set_scheme(browser, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def wait(browser, script: str) -> None:
    until = time.monotonic() + 60
    while not browser.execute_script(script):
        assert time.monotonic() < until, f"never true: {script}; console: {browser.get_log('browser')}"
        time.sleep(0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_opens_without_a_word_and_fits(browser, page, width, scheme):
    opened(browser, page, width, scheme)
    assert browser.get_log("browser") == []
    assert browser.title == "IMA on digits"
    inner, outer = browser.execute_script("const e = document.documentElement; return [e.scrollWidth, e.clientWidth]")
    assert inner <= outer <= width  # a scroll bar may take its part
    places = browser.execute_script(
        "return [...document.querySelectorAll('[data-chart]')].map("
        "e => [e.dataset.chart, e.querySelector('svg')?.getBoundingClientRect().width, e.clientWidth])"
    )
    assert len(places) >= 6
    for name, svg, room in places:
        assert svg is not None and 200 < svg <= room + 1, name
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background.removeprefix("rgb(").removesuffix(")").split(","))) < 150) == (scheme == "dark")
    # Nothing on the page was fetched, and the names are text.
    assert (
        browser.execute_script(
            "return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:'))"
        )
        == []
    )
    assert HOSTILE in browser.execute_script("return document.querySelector('#classes').textContent")


def test_the_scheme_may_change_while_it_is_open(browser, page):
    opened(browser, page, 1280)
    ink = "return document.querySelector('[data-chart=margins] svg .mark-rect path').getAttribute('fill')"
    before = browser.execute_script(ink)
    set_scheme(browser, "dark")
    wait(browser, "return document.documentElement.dataset.drawn === 'dark'")
    assert browser.execute_script(ink) != before
    assert browser.get_log("browser") == []


def test_the_class_table_sorts(browser, page):
    opened(browser, page, 1280)
    column = "return [...document.querySelectorAll('table.classes tbody tr')].map(r => +r.cells[%d].dataset.value)"
    click = "document.querySelectorAll('table.classes thead button')[%d].click()"
    assert (found := browser.execute_script(column % 3)) == sorted(found)  # the weakest in the worst case first
    browser.execute_script(click % 2)
    rising = browser.execute_script(column % 2)
    assert rising == sorted(rising) and len(set(rising)) > 1
    browser.execute_script(click % 2)
    assert browser.execute_script(column % 2) == sorted(rising, reverse=True)
    heads = browser.execute_script("return [...document.querySelectorAll('table.classes th')].map(h => h.ariaSort)")
    assert heads[:6] == [None, None, "descending", None, None, None]
    assert browser.get_log("browser") == []


def test_the_slider_moves_the_histogram(browser, page):
    opened(browser, page, 1280)
    of_bars = "[...document.querySelectorAll('[data-chart=margins] svg .mark-rect path')]"
    bars = f"return {of_bars}.map(e => e.getAttribute('d')).join()"
    told = "return document.querySelector('.slider output').textContent"
    last = browser.execute_script(bars), browser.execute_script(told)
    assert last[1].startswith("epoch 2: mean")
    move = "const s = document.getElementById('epoch'); s.value = 0; s.dispatchEvent(new Event('input'))"
    browser.execute_script(move)
    wait(browser, f"return (() => {{ {bars} }})() !== {last[0]!r}")
    assert browser.execute_script(told).startswith("epoch 1: mean")
    assert browser.get_log("browser") == []


def test_a_curve_tells_its_values_under_the_pointer(browser, page):
    from selenium.webdriver.common.action_chains import ActionChains

    opened(browser, page, 1280)
    chart = browser.find_element("css selector", "[data-chart=accuracy]")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", chart)
    for right in (100, 101):  # a second move, since the first only enters
        ActionChains(browser).move_to_element_with_offset(chart, right, -20).perform()
    wait(browser, "return /validation, robust/.test(document.getElementById('vg-tooltip-element')?.textContent ?? '')")
    last = workdir.read_metrics(page.parent)[-1]["validation"]
    assert f"{last['robust_accuracy']:.1%}" in browser.execute_script(
        "return document.getElementById('vg-tooltip-element').textContent"
    )
    assert browser.get_log("browser") == []


def test_texts_and_tables_are_whole_without_scripts(browser, page):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(page.as_uri())
        body = browser.find_element("tag name", "body").text
        assert "Charts need JavaScript" in body and "IMA on digits gets" in body
        assert "--mode=diagnose" in body
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})

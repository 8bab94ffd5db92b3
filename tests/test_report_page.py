"""The report in a browser: what a reader clicks, types and sees. Skipped where there is no Chromium."""

import base64
import io
import json
import shutil

import numpy as np
import pytest
from digit_runs import SETTINGS, digit_runs
from fake_results import MODELS, fake_run
from PIL import Image
from test_report import HOSTILE, compare, write

from common.data.dataset import load_dataset_of_run
from common.report import explorer
from common.runs.predictions import PREDICTIONS_FILE

LORA, RESNET, EFFICIENTNET, *_ = MODELS


@pytest.fixture(scope="module")
def browser():
    """One headless Chromium for all tests; it logs its console and what it asks of the network."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium with chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)  # a container's root has no sandbox; the page is our own
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three models of two seeds on the real digits, and two on a second data set without images."""
    path = tmp_path_factory.mktemp("results")
    digit_runs(path)
    for name in (LORA, RESNET):
        fake_run(path, name, num_test=50)
    return path


@pytest.fixture(scope="module")
def file(folder, tmp_path_factory):
    """The report of ``folder``: CIFAR-10 is its first data set, digits its second."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    write(path, compare(folder))
    return path


@pytest.fixture
def page(browser, file):
    """The report, freshly loaded in a wide and light window, showing digits."""
    look(browser, width=1200, scheme="light")
    browser.get(file.as_uri())
    browser.execute_script("document.querySelectorAll('#datasets button')[1].click()")
    yield browser
    assert browser.get_log("browser") == []


def look(browser, *, width: int, scheme: str, height: int = 900) -> None:
    media = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}  # a smooth scroll dodges clicks
    features = [{"name": name, "value": value} for name, value in media.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def screenshot(browser) -> Image.Image:
    whole = {"captureBeyondViewport": True, "format": "png"}
    content = browser.execute_cdp_cmd("Page.captureScreenshot", whole)["data"]
    return Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")


def press(browser, *keys: str) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    for key in keys:
        ActionChains(browser).send_keys(getattr(Keys, key, key)).perform()


def texts(browser, selector: str) -> list[str]:
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((one) => one.innerText)", selector
    )


def shown(browser, panel: str) -> list[int]:
    """Return the test images among the cards of ``panel``, after "show more" as often as it can be pressed."""
    return browser.execute_script(
        """const panel = document.querySelector(arguments[0]);
        for (let more = panel.querySelector('.more'); more && !more.hidden;) more.click();
        return [...panel.querySelectorAll('li')].map((card) => Number(card.dataset.index))""",
        panel,
    )


def predictions(folder, name: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return labels, predicted classes, confidences and indices, from the file itself."""
    arrays = np.load(folder / "digits" / name / f"seed{seed}" / PREDICTIONS_FILE)
    exponents = np.exp(arrays["logits"].astype(float))
    confidence = (exponents / exponents.sum(axis=1, keepdims=True)).max(axis=1)
    return arrays["labels"], arrays["logits"].argmax(axis=1), confidence, arrays["indices"]


def percent(confidence: float) -> str:
    return "> 99.9 %" if confidence > 0.9995 else f"{100 * confidence:.1f} %"


def choose(browser, select: str, name: str) -> None:
    """Choose the option that contains ``name``."""
    browser.execute_script(
        """const select = document.getElementById(arguments[0]);
        select.value = [...select.options].find((option) => option.text.includes(arguments[1])).value;
        select.dispatchEvent(new Event('change'))""",
        select,
        name,
    )


def test_nothing_is_asked_of_any_network_and_no_error_is_logged(browser, file):
    browser.get_log("performance")
    browser.get(file.as_uri())
    for index in range(2):
        browser.execute_script(f"document.querySelectorAll('#datasets button')[{index}].click()")
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert file.as_uri() in asked
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert browser.get_log("browser") == []


def test_the_policy_stops_what_would_be_loaded(browser, file, tmp_path):
    bad = '<img src="http://localhost:1/x.png"><script>window.injected = true</script></body>'
    (tmp_path / "bad.html").write_text(file.read_text().replace("</body>", bad))
    browser.get((tmp_path / "bad.html").as_uri())
    assert browser.execute_script("return window.injected") is None
    assert sum("Content Security Policy" in entry["message"] for entry in browser.get_log("browser")) == 2


def test_a_cell_shows_its_images(page, folder):
    choose(page, "matrix-run", "ResNet50 (published head)\u2069, seed 1")
    labels, predicted, confidence, indices = predictions(folder, RESNET, 1)
    matrix = np.zeros((10, 10), dtype=int)
    np.add.at(matrix, (labels, predicted), 1)
    drawn = [int(text or 0) for text in texts(page, "#matrix td")]
    assert np.array_equal(np.reshape(drawn, (10, 10)), matrix)
    mistakes = matrix - np.diag(np.diag(matrix))
    for actual, guess in (np.unravel_index(mistakes.argmax(), matrix.shape), (4, 4)):
        page.find_element("css selector", f"td[data-true='{actual}'][data-predicted='{guess}']").click()
        found = np.flatnonzero((labels == actual) & (predicted == guess))
        found = found[np.argsort(-np.rint(confidence[found] * explorer.FULL_CONFIDENCE), kind="stable")]
        assert shown(page, "#cell") == indices[found].tolist() and len(found) > 1
        assert texts(page, "#cell h4") == [f"True {actual}, predicted {guess}"]
        lines = texts(page, "#cell li")[0].splitlines()
        assert lines == [
            f"true {actual}",
            f"→ {guess}",
            percent(confidence[found[0]]),
            f"no. {indices[found[0]]}",
        ]


def test_a_cards_picture_is_the_image_itself(page):
    test = load_dataset_of_run(SETTINGS).test
    originals = dict(zip(test.indices.tolist(), test.pixels, strict=True))
    page.find_element("css selector", "td[data-true='3'][data-predicted='3']").click()
    cards = page.execute_async_script(
        """const done = arguments[0];
        const red = (canvas) => [...canvas.getContext('2d').getImageData(0, 0, 8, 8).data].filter((_, i) => i % 4 < 1);
        const read = (card) => [Number(card.dataset.index), red(card.querySelector('canvas'))];
        setTimeout(() => done([...document.querySelectorAll('#cell li')].map(read)), 500);"""
    )
    assert len(cards) == 12
    for index, pixels in cards:
        assert np.array_equal(np.reshape(pixels, (8, 8)), originals[index])


def test_disagreements_are_both_ways(page, folder):
    choose(page, "run-a", "ViT-B/16 + LoRA (r=16)\u2069, seed 0")
    choose(page, "run-b", "EfficientNet-B0 (published head)\u2069, seed 1")
    labels, a, a_confidence, indices = predictions(folder, LORA, 0)
    _, b, b_confidence, _ = predictions(folder, EFFICIENTNET, 1)
    for panel, right, wrong, confidence in (("#only-a", a, b, b_confidence), ("#only-b", b, a, a_confidence)):
        found = np.flatnonzero((right == labels) & (wrong != labels))
        found = found[np.argsort(-np.rint(confidence[found] * explorer.FULL_CONFIDENCE), kind="stable")]
        assert shown(page, panel) == indices[found].tolist() and len(found) > 0
        lines = texts(page, f"{panel} li")[0].splitlines()
        first = found[0]
        assert lines[:3] == [
            f"true {labels[first]}",
            f"A: {a[first]} {percent(a_confidence[first])}",
            f"B: {b[first]} {percent(b_confidence[first])}",
        ]
    both, neither = ((a == labels) & (b == labels)).sum(), ((a != labels) & (b != labels)).sum()
    assert texts(page, "#agreement") == [f"Of 359 test images, both are right on {both} and both wrong on {neither}."]


def test_a_heading_sorts_the_table_by_click_and_by_key(page):
    def column(number: int) -> list[str]:
        return texts(page, f"#summary > .scroll tbody tr > :nth-child({number})")

    headings = page.find_elements("css selector", "#summary thead button")
    accuracy = sorted(column(3))
    headings[2].click()
    assert column(3) == accuracy[::-1] != accuracy
    page.execute_script("arguments[0].focus()", headings[2])
    press(page, "ENTER")
    assert column(3) == accuracy
    assert page.execute_script("return document.querySelector('th[aria-sort]').ariaSort") == "ascending"
    page.execute_script("arguments[0].focus()", headings[0])
    press(page, "SPACE")
    assert column(1) == sorted(column(1))
    press(page, "SPACE")
    assert column(1) == sorted(column(1), reverse=True)
    assert len(page.find_elements("css selector", "th[aria-sort]")) == 1


def test_the_matrix_works_by_keyboard(page):
    page.execute_script("document.querySelector(\"td[data-true='0'][data-predicted='0']\").click()")
    assert len(page.find_elements("css selector", "#matrix td[tabindex='0']")) == 1
    page.execute_script("document.querySelector('#matrix td[tabindex=\"0\"]').focus()")
    for keys, heading in (
        (["ARROW_RIGHT", "ARROW_DOWN", "ENTER"], "True 1, predicted 1"),
        (["ARROW_DOWN", "ARROW_DOWN", "ARROW_LEFT", "SPACE"], "True 3, predicted 0"),
        (["ARROW_LEFT", "ARROW_UP", "END", "ENTER"], "True 2, predicted 9"),
        (["ARROW_RIGHT", "HOME", "ENTER"], "True 2, predicted 0"),
    ):
        press(page, *keys)
        assert texts(page, "#cell h4") == [heading]
    focused = page.execute_script("return [document.activeElement.tabIndex, document.activeElement.ariaSelected]")
    assert focused == [0, "true"]


def test_curves_are_read_by_pointer_and_by_key(page, folder):
    from selenium.webdriver import ActionChains

    (*_, compared) = compare(folder)
    histories = [run.result.history for run in compared.series[0].runs]

    def expected(epoch: int) -> list[str]:
        keys = ("val_loss", "train_loss", "val_accuracy", "train_accuracy")
        means = (np.mean([getattr(history[epoch - 1], key) for history in histories]) for key in keys)
        return [f"{mean:.3f}" for mean in means]

    def readout() -> tuple[str, list[str]]:
        return texts(page, "#readout th")[0], texts(page, "#readout tbody tr:first-child td")

    assert readout() == ("Epoch 5 of 5", expected(5))
    page.execute_script("document.getElementById('curves').focus()")
    press(page, "ARROW_LEFT", "ARROW_LEFT")
    assert readout() == ("Epoch 3 of 5", expected(3))
    assert "Epoch 3" in page.execute_script("return document.getElementById('curves').ariaValueText")
    press(page, "HOME", "ARROW_LEFT")
    assert readout() == ("Epoch 1 of 5", expected(1))
    chart = page.find_element("css selector", "#curves svg")
    page.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", chart)
    ActionChains(page).move_to_element_with_offset(chart, int(0.25 * chart.size["width"]), 0).perform()
    assert readout() == ("Epoch 4 of 5", expected(4))


def test_the_data_set_is_chosen_by_key_too(page):
    page.execute_script("document.querySelector('#datasets [aria-checked=\"true\"]').focus()")
    press(page, "ARROW_LEFT")
    assert texts(page, "#datasets [aria-checked='true']") == ["CIFAR-10"]
    assert texts(page, "#matrix tbody th")[0] == "airplane"
    (remark,) = texts(page, "#remark")
    assert remark.startswith("The test images are not shown: the run's record does not say how")
    assert page.find_elements("css selector", "#explorer canvas") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_no_width_overflows_and_the_dark_is_dark(page, width, scheme, tmp_path):
    page.execute_script("for (const part of document.querySelectorAll('details')) part.open = true")
    look(page, width=width, scheme=scheme)
    picture = screenshot(page)
    picture.save(tmp_path / f"{scheme}_{width}.png")  # to look at
    assert page.execute_script("return document.documentElement.scrollWidth") == width
    assert (sum(picture.getpixel((2, 2))) > 600) == (scheme == "light")
    assert len(picture.getcolors(2**24)) > 50


def test_print_opens_what_is_closed_and_closes_it_again(page):
    closed = "return document.querySelectorAll('details:not([open])').length"
    before = page.execute_script(closed)
    assert before == 7
    page.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    assert page.execute_script(closed) == 0
    page.execute_script("window.dispatchEvent(new Event('afterprint'))")
    assert page.execute_script(closed) == before
    assert base64.b64decode(page.print_page()).startswith(b"%PDF")


def test_hostile_names_are_text_in_a_browser(browser, tmp_path):
    for name in (LORA, RESNET):
        fake_run(tmp_path, name, dataset="own", classes=HOSTILE, num_test=50)
    write(tmp_path / "report.html", compare(tmp_path, **{LORA: HOSTILE[0]}))
    look(browser, width=360, scheme="light")
    browser.get((tmp_path / "report.html").as_uri())  # an alert would make the next call fail
    names = browser.execute_script(
        "return [...document.querySelectorAll('#matrix tbody th')].map((one) => one.textContent.split('\\udc80')[0])"
    )
    assert names == [name.split("\udc80")[0] for name in HOSTILE]  # half a letter does not survive the driver
    assert browser.find_elements("css selector", "img, bdi *") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") == 360
    assert browser.get_log("browser") == []

"""A visitor's way through every tab, in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demos.handlers import EXAMPLES, scene_examples

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; make test-browser installs it"),
]
PATIENCE = 60_000
"""milliseconds"""
SCREENSHOTS = os.environ.get("DEMO_SCREENSHOTS")
"""A folder to keep pictures of every tab in"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--enable-unsafe-swiftshader"]
        )
        yield running
        running.close()


@pytest.fixture
def page(browser: Any, server: Any) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1280, "height": 1000})
    opened.set_default_timeout(PATIENCE)
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(server.url)
    opened.get_by_role("tab", name="Counting").first.wait_for()
    yield opened
    opened.close()
    assert errors == []


def shoot(page: Any, name: str) -> None:
    if SCREENSHOTS:
        page.evaluate("window.scrollTo(0, 0)")
        page.wait_for_timeout(600)
        page.screenshot(path=str(Path(SCREENSHOTS) / f"{name}.png"))


def text_of(page: Any, identity: str) -> str:
    return str(page.locator(f"#{identity} textarea, #{identity} input").first.input_value())


def wait_for_text(page: Any, identity: str, pattern: str) -> str:
    script = "([id, p]) => new RegExp(p).test(document.querySelector(`#${id} textarea, #${id} input`)?.value ?? '')"
    page.wait_for_function(script, arg=[identity, pattern], timeout=PATIENCE)
    return text_of(page, identity)


def click_at(page: Any, identity: str, x: float, y: float) -> None:
    """Clicks a picture at shares of its width and height."""
    picture = page.locator(f"#{identity} img").first
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])


def drag(page: Any, identity: str, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drags over a picture between places given as shares of its width and height."""
    picture = page.locator(f"#{identity} img").first
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    page.mouse.move(box["x"] + start[0] * box["width"], box["y"] + start[1] * box["height"])
    page.mouse.down()
    for share in (0.3, 0.7, 1.0):
        x, y = (one + share * (two - one) for one, two in zip(start, end, strict=True))
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    page.mouse.up()


def boxes_on(page: Any) -> list[list[float]]:
    return list(json.loads(page.locator("#count-boxes textarea, #count-boxes input").first.input_value()))


def wait_for_boxes(page: Any, condition: str) -> list[list[float]]:
    """Until a condition on `boxes` holds."""
    page.wait_for_function(
        "c => { const boxes = JSON.parse(document.querySelector('#count-boxes textarea, #count-boxes input').value);"
        " return new Function('boxes', 'return ' + c)(boxes); }",
        arg=condition,
        timeout=PATIENCE,
    )
    return boxes_on(page)


def as_json(box: list[float]) -> str:
    """As the browser writes it."""
    return json.dumps(box, separators=(",", ":"))


def open_tab(page: Any, name: str) -> Any:
    page.get_by_role("tab", name=name).first.click()
    panel = page.locator("[role=tabpanel]:visible").first
    panel.wait_for()
    return panel


def test_counting_draws_answers_and_follows_an_edited_box(page: Any) -> None:
    panel = open_tab(page, "Counting")
    panel.locator("input[type=file]").first.set_input_files(str(scene_examples()[3]))
    panel.get_by_role("button", name="Count", exact=True).click()
    wait_for_text(page, "count-direct", r"\d")
    answer = wait_for_text(page, "count-answer", r"^\d+ \(boxes drawn: \d+\)$")
    count, boxes = map(int, re.findall(r"\d+", answer))
    assert count == boxes > 0
    shoot(page, "demo-counting")

    panel.get_by_label("Add a box: drag, or click two corners").click()
    click_at(page, "count-picture", 0.02, 0.02)
    page.get_by_text("Now click the opposite corner.").wait_for()
    click_at(page, "count-picture", 0.2, 0.2)
    wait_for_text(page, "count-answer", rf"^{count + 1} \(boxes drawn: {boxes + 1}\)$")
    page.get_by_text("Answered again, from the edited boxes.").wait_for()

    panel.get_by_label("Delete a box: click inside").click()
    click_at(page, "count-picture", 0.1, 0.1)
    wait_for_text(page, "count-answer", rf"^{count} \(boxes drawn: {boxes}\)$")


def test_boxes_are_drawn_moved_and_resized_by_dragging(page: Any) -> None:
    panel = open_tab(page, "Counting")
    panel.locator("input[type=file]").first.set_input_files(str(scene_examples()[3]))
    panel.get_by_role("button", name="Count", exact=True).click()
    answer = wait_for_text(page, "count-answer", r"^\d+ \(boxes drawn: \d+\)$")
    count = int(answer.split()[0])
    before = wait_for_boxes(page, f"boxes.length == {count}")

    panel.get_by_label("Add a box").click()
    drag(page, "count-picture", (0.05, 0.05), (0.25, 0.2))
    wait_for_text(page, "count-answer", rf"^{count + 1} \(boxes drawn: {count + 1}\)$")
    drawn = wait_for_boxes(page, f"boxes.length == {count + 1}")
    new = [box for box in drawn if box not in before]  # boxes are kept in the order of the picture
    assert len(new) == 1 and new[0] == pytest.approx([0.05, 0.05, 0.25, 0.2], abs=0.03)

    panel.get_by_label("Move or resize a box").click()
    drag(page, "count-picture", (0.15, 0.12), (0.35, 0.22))
    lying = wait_for_boxes(page, f"!boxes.some(b => JSON.stringify(b) == '{as_json(new[0])}')")
    moved = [box for box in lying if box not in before]
    assert len(moved) == 1 and moved[0] == pytest.approx([0.25, 0.15, 0.45, 0.3], abs=0.04)
    drag(page, "count-picture", (moved[0][2], moved[0][3]), (0.6, 0.5))
    lying = wait_for_boxes(page, f"!boxes.some(b => JSON.stringify(b) == '{as_json(moved[0])}')")
    resized = [box for box in lying if box not in before]
    assert len(resized) == 1 and resized[0] == pytest.approx([*moved[0][:2], 0.6, 0.5], abs=0.04)
    wait_for_text(page, "count-answer", rf"^{count + 1} \(boxes drawn: {count + 1}\)$")
    shoot(page, "demo-dragged")

    panel.get_by_label("Delete a box: click inside").click()
    click_at(page, "count-picture", 0.3, 0.2)
    wait_for_text(page, "count-answer", rf"^{count} \(boxes drawn: {count}\)$")


def test_depth_fills_in_answers_and_follows_an_edited_map(page: Any) -> None:
    panel = open_tab(page, "Depth")
    panel.locator("input[type=file]").first.set_input_files(str(scene_examples()[-1]))
    page.locator("#depth-points img").first.wait_for()
    for x, y in ((0.3, 0.3), (0.7, 0.75)):
        before = page.locator("#depth-points img").first.get_attribute("src")
        click_at(page, "depth-points", x, y)
        page.wait_for_function(
            "b => document.querySelector('#depth-points img')?.src !== b", arg=before, timeout=PATIENCE
        )
    panel.get_by_role("button", name="Which is closest?").click()
    wait_for_text(page, "depth-direct", "closest|read")
    answer = wait_for_text(page, "depth-answer", "near to far")
    assert answer.startswith("B is closest")
    shoot(page, "demo-depth")

    before = page.locator("#depth-map img").first.get_attribute("src")
    click_at(page, "depth-map", 0.35 * 480 / 544, 0.35)
    page.get_by_text(re.compile(r"Row 4, column 4: code \d+")).wait_for()
    page.wait_for_function("b => document.querySelector('#depth-map img')?.src !== b", arg=before, timeout=PATIENCE)
    panel.get_by_role("button", name="Change the map and answer again").click()
    assert wait_for_text(page, "depth-answer", "^A is closest").startswith("A is closest")
    shoot(page, "demo-edited")


def test_reasoning_goes_over_steps_and_their_regions(page: Any) -> None:
    panel = open_tab(page, "Reasoning")
    panel.locator("input[type=file]").first.set_input_files(str(EXAMPLES / "chart-bars-21.png"))
    panel.get_by_role("button", name="Solve", exact=True).click()
    wait_for_text(page, "reason-answer", r"^\d+$")
    words = text_of(page, "reason-words").splitlines()
    assert len(words) >= 2
    assert text_of(page, "reason-said") == words[0].removeprefix("1. ")
    page.wait_for_timeout(500)
    shoot(page, "demo-reasoning")
    before = page.locator("#reason-picture img").first.get_attribute("src")
    page.locator("#reason-step input[type=number]").fill("2")
    page.locator("#reason-step input[type=number]").press("Enter")
    page.wait_for_function(
        "b => document.querySelector('#reason-picture img')?.src !== b", arg=before, timeout=PATIENCE
    )
    assert text_of(page, "reason-said") == words[1].removeprefix("2. ")


def test_tokenizer_shows_codes_and_decodes_pasted_ones(page: Any) -> None:
    panel = open_tab(page, "Tokenizer")
    panel.locator("input[type=file]").first.set_input_files(str(sorted(EXAMPLES.glob("depth-*.png"))[0]))
    panel.get_by_role("button", name="Tokenize", exact=True).click()
    text = wait_for_text(page, "token-text", "^<DEPTH_START>.*<DEPTH_END>$")
    assert len(re.findall(r"<DEPTH_\d+>", text)) == 100
    area = page.locator("#token-text textarea")
    area.fill("<DEPTH_START>" + "<DEPTH_5>" * 100 + "<DEPTH_END>")
    panel.get_by_role("button", name="Decode these tokens").click()
    page.locator("#token-map img").first.wait_for()

    panel.get_by_label("nested: any first ones of 100").click()
    panel.get_by_label("First so many tokens").first.fill("36")
    panel.get_by_role("button", name="Tokenize", exact=True).click()
    captions = page.locator("#token-budgets").get_by_text(re.compile(r"^\d+ tokens: AbsRel \d\.\d+$"))
    captions.nth(5).wait_for()
    shown = [re.findall(r"[\d.]+", text) for text in captions.all_inner_texts()]
    assert [int(tokens) for tokens, _ in shown] == [4, 9, 16, 36, 64, 100]
    assert float(shown[0][1]) > float(shown[-1][1])
    shoot(page, "demo-tokenizer")

    area.fill("<DEPTH_START><DEPTH_5><DEPTH_END>")
    panel.get_by_role("button", name="Decode these tokens").click()
    page.get_by_text("must hold exactly 100 codes").first.wait_for()


def test_a_wrong_file_is_refused_in_friendly_words(page: Any, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(scene_examples()[0].read_bytes()[:2000])
    panel = open_tab(page, "Counting")
    panel.locator("input[type=file]").first.set_input_files(str(damaged))
    panel.get_by_role("button", name="Count", exact=True).click()
    page.get_by_text("the image is damaged").first.wait_for()


@pytest.mark.parametrize("dark", [False, True])
def test_no_serious_accessibility_fault(page: Any, server: Any, dark: bool) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    if dark:
        page.goto(server.url + "?__theme=dark")
    for name in ("Counting", "Depth", "Reasoning", "Tokenizer"):
        open_tab(page, name)
        page.wait_for_timeout(500)
        found = axe.run(page).response["violations"]
        serious = [
            (fault["id"], node["target"], node["failureSummary"][:200])
            for fault in found
            if fault["impact"] in ("serious", "critical")
            for node in fault["nodes"]
        ]
        assert serious == [], f"{name}: {serious}"


def test_readable_on_a_phone(browser: Any, server: Any) -> None:
    opened = browser.new_page(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    opened.set_default_timeout(PATIENCE)
    opened.goto(server.url)
    for name in ("Counting", "Depth"):
        opened.get_by_role("tab", name=name).first.wait_for()
        open_tab(opened, name)
        width = opened.evaluate("document.documentElement.scrollWidth")
        assert width <= 390, f"{name}: {width} pixels wide on a screen of 390"
        shoot(opened, f"demo-phone-{name.lower()}")
    opened.close()

"""The web page in a browser: Debian's Chromium, driven by Playwright."""

import re
import shutil
import time

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.filterwarnings("ignore"),  # of Gradio, its client and pandas
]
STATE = "video => [new URL(video.src).pathname.split('/').pop(), video.currentTime, video.duration]"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def open_page(browser, address, **options):
    context = browser.new_context(**options)
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("#make", timeout=60000)
    return page


def choose(page, portrait, song):
    page.locator("#portraits button", has_text=portrait).first.click()
    page.locator("#song_name input").click()
    page.locator("#song_name").get_by_role("option", name=song).click()


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_two_choices_and_a_button_make_a_video_that_plays_while_it_grows(start, browser):
    _, pipe, address = start()
    pipe.delay = 0.4
    page = open_page(browser, address)
    choose(page, "bob.png", "six.wav")
    page.click("#make")
    page.get_by_text(re.compile("agrees")).nth(1).wait_for()  # the message that consent is missing
    assert not pipe.options
    page.check("#consent input")
    page.click("#make")
    video = page.locator("#video video")
    wait_for(lambda: video.count() and video.evaluate(STATE)[1] > 0.2)
    name, _, _ = video.evaluate(STATE)
    assert name == "live.mp4" and "of 150 frames" in page.inner_text("#status")
    page.get_by_text("Done: 6.0 s.").wait_for(timeout=60000)
    wait_for(lambda: video.evaluate(STATE)[0] == "video.mp4" and video.evaluate(STATE)[1] > 0.2)
    assert video.evaluate(STATE)[2] == pytest.approx(6.0, abs=0.05)
    with page.expect_download() as download:
        page.locator("#download a").first.click()
    assert download.value.suggested_filename == "video.mp4"
    page.reload()
    page.wait_for_selector("#consent input:checked")  # asked once
    page.context.close()


def test_cancelled_video_leaves_nothing(start, browser):
    server, pipe, address = start()
    pipe.delay = 0.5
    page = open_page(browser, address)
    page.check("#consent input")
    choose(page, "ada.png", "long.wav")
    page.click("#make")
    wait_for(lambda: "frames" in page.inner_text("#status"))
    page.click("#cancel")
    page.get_by_text("Cancelled.").wait_for()
    wait_for(lambda: not server.studio.jobs)
    assert [path.name for path in server.studio.root.iterdir() if path.name != "uploads"] == []
    page.context.close()


def test_two_users_at_once_see_their_own_videos(start, browser):
    server, pipe, address = start()
    pipe.delay = 0.1
    pages = [open_page(browser, address, locale=locale) for locale in ("en-US", "zh-CN")]
    assert "生成视频" in pages[1].inner_text("#make")
    for page in pages:
        page.check("#consent input")
        choose(page, "bob.png", "two.wav")
        page.click("#make")
    sources = []
    for page in pages:
        page.wait_for_selector("#video video[src*='video.mp4']", timeout=60000)
        sources.append(page.locator("#video video").get_attribute("src"))
    assert sources[0] != sources[1] and len(server.studio.jobs) == 2
    for source, own, other in ((sources[0], *pages), (sources[1], *pages[::-1])):
        assert own.request.get(f"{address}/{source}").status == 200
        assert other.request.get(f"{address}/{source}").status == 404
    for page in pages:
        page.context.close()

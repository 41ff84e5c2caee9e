"""Looks at a run's dashboard as a person does, in headless Chromium: dashboard.py URL DIRECTORY TOKEN.

The run is `r`, its worker 2 is slow and its worker 1 was killed; another run, `before`, is over. Pictures go to DIRECTORY.
"""

import sys

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

url, directory, token = sys.argv[1:]
options = webdriver.ChromeOptions()
options.binary_location = "/usr/bin/chromium"
for argument in ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1440,1600"]:
    options.add_argument(argument)
options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
page = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
wait = WebDriverWait(page, 60)


def one(selector):
    return page.find_element(By.CSS_SELECTOR, selector)


def text(selector):
    # As it is now: what is shown is made anew as the run goes on.
    return page.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", selector)


def size(width, height):
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600})


try:
    page.get(url)
    wait.until(lambda _: text("#connection") == "running")
    assert page.title == "r · running · Convoy", page.title

    # By keyboard, the first thing is a way past the head.
    one("body").send_keys(Keys.TAB)
    assert page.switch_to.active_element.get_attribute("class") == "skip"

    # It moves by itself.
    first = text("#numbers .value")
    wait.until(lambda _: text("#numbers .value") != first)

    # Who is slow and who died.
    wait.until(lambda _: "straggler" in text("#workers tr.straggler"))
    assert text("#workers tr.straggler td") == "2", text("#workers tr.straggler")
    wait.until(lambda _: "worker 1 (process" in text("#notice") and "SIGKILL" in text("#notice"))
    wait.until(lambda _: "killed by signal 9" in text("#timeline"))
    assert len(page.find_elements(By.CSS_SELECTOR, "#servers tbody tr")) == 2

    # Curves, and their values by keyboard.
    wait.until(lambda _: len(page.find_elements(By.CSS_SELECTOR, "#charts svg[role=img]")) >= 6)
    page.execute_script("document.querySelector('#charts svg').focus()")
    one("#charts svg").send_keys(Keys.HOME)
    wait.until(lambda _: text("#charts .tip").startswith("step 1"))
    one("#charts svg").send_keys(Keys.ARROW_RIGHT)
    wait.until(lambda _: text("#charts .tip").startswith("step 2"))
    wait.until(lambda _: "tip" in page.execute_script("return document.querySelector('#charts .chart').innerHTML"))

    # Another run, laid over.
    wait.until(lambda _: page.find_elements(By.CSS_SELECTOR, "#overlay-runs input[value=before]"))
    one("#overlay summary").click()
    one("#overlay-runs input[value=before]").click()
    wait.until(lambda _: text("#charts .legend").split() == ["r", "before"])
    page.save_screenshot(f"{directory}/light.png")
    one("#overlay-runs input[value=before]").click()
    one("#overlay summary").click()

    # Dark, then a phone.
    for _ in range(3):
        if page.execute_script("return document.documentElement.dataset.theme") == "dark":
            break
        one("#theme").click()
    dark = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert dark == "rgb(18, 19, 22)", dark
    page.save_screenshot(f"{directory}/dark.png")
    size(390, 1600)
    wait.until(lambda _: page.execute_script("return document.documentElement.scrollWidth <= innerWidth"))
    page.save_screenshot(f"{directory}/phone.png")
    size(1440, 1600)

    # A run that is over.
    Select(one("#run")).select_by_value("before")
    wait.until(lambda _: text("#connection") == "done" and page.title.startswith("before"))
    assert text("#numbers .value").startswith("40"), text("#numbers")
    Select(one("#run")).select_by_value("r")
    wait.until(lambda _: text("#connection") == "running")

    # Whoever has no token may look only.
    one("#token").send_keys("wrong")
    one("#stop").click()
    wait.until(lambda _: "token is missing or wrong" in text("#answer"))
    one("#token").clear()
    one("#token").send_keys(token)

    # Nothing came from elsewhere, and nothing went wrong but the refusal.
    loaded = page.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert loaded and all(name.startswith(url) for name in loaded), loaded
    problems = [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE" and "401" not in entry["message"]]
    assert not problems, problems

    one("#stop").click()
    wait.until(lambda _: text("#connection") in ("stopped", "connection lost"))
finally:
    page.quit()

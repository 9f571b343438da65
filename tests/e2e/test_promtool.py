"""The alerts and the dashboard, as Prometheus itself reads them."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.patience import GIVE_UP_S

MONITORING = Path(__file__).parents[2] / "webapp" / "monitoring"


def find_promtool(environment):
    """Where it is. Without it the test is skipped; where CI is set it fails, so that no skip hides there."""
    found = shutil.which("promtool", path=environment.get("PATH", ""))
    if found is None and environment.get("CI"):
        pytest.fail("promtool is not installed: .ci/run installs Debian's package prometheus")
    if found is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    return found


@pytest.fixture(scope="module")
def promtool():
    """Runs it in webapp/monitoring: the exit code and all output."""
    program = find_promtool(os.environ)

    def run(*arguments):
        ended = subprocess.run(
            [program, *arguments],
            cwd=MONITORING,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=GIVE_UP_S,
        )
        return ended.returncode, ended.stdout

    return run


def test_rules_are_valid(promtool):
    """Prometheus accepts alerts.yml, and finds nothing to remark."""
    code, output = promtool("check", "rules", "--lint=all", "--lint-fatal", "alerts.yml")
    assert code == 0, output


@pytest.mark.parametrize("tests", ["alerts_test.yml", "alerts_day_test.yml"])
def test_alerts_fire_when_they_should(promtool, tests):
    """Each alert fires for what it is about, and for nothing else that the tests play through."""
    code, output = promtool("test", "rules", tests)
    assert code == 0, output
    assert "SUCCESS" in output


def test_expressions_of_the_dashboard_are_valid(promtool, tmp_path):
    """Prometheus can read each expression of each panel."""
    board = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
    written = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    written.append(board["annotations"]["list"][0]["expr"])
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, expression in enumerate(written)
    ]
    file = tmp_path / "panels.yml"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}), encoding="utf-8")
    code, output = promtool("check", "rules", str(file))
    assert code == 0, output
    assert f"{len(written)} rules found" in output


def test_missing_promtool(tmp_path):
    """Without promtool the tests are skipped, and fail where CI is set."""
    with pytest.raises(pytest.skip.Exception, match="not installed"):
        find_promtool({"PATH": str(tmp_path)})
    with pytest.raises(pytest.fail.Exception, match="not installed"):
        find_promtool({"PATH": str(tmp_path), "CI": "1"})

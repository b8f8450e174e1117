"""What an operator may type: read as a second opinion reads it, or refused; never anything else."""

from __future__ import annotations

import shlex
from decimal import Decimal

from hypothesis import example, given
from hypothesis import strategies as st

from synplug.cli import values
from synplug.cli.options import parser
from synplug.errors import SynplugError, UsageError
from synplug.model import Endpoint
from tests.unit import oracles

ADDRESSES = st.ip_addresses().map(str)
PORTS = st.integers(-1, 70_000).map(str) | st.sampled_from(["０", "²", "080", "000080", "", "8_0"])
HOSTS = ADDRESSES | st.sampled_from(
    [
        "*",
        "[]",
        "::",
        "[::]",
        "[::1%lo]",
        "127.1",
        "010.0.0.1",
        "1.2.3.4.",
        "[1.2.3.4]",
        "::1",
        "[*]",
        "",
    ]
)
#: Valid ones, nearly valid ones, and anything.
ENDPOINTS = (
    st.builds("{}:{}".format, HOSTS | ADDRESSES.map("[{}]".format), PORTS)
    | PORTS
    | st.text("0123456789.:[]*%abcdef, \t\n٣", max_size=24)
    | st.text(max_size=24)
)
NUMBERS = st.text("0123456789.", max_size=12) | st.decimals(0, 90_000, places=3).map(str)
UNITS = st.sampled_from(["ms", "s", "m", "h", "", "d", "S", "µs", "mss", "h h"])
DURATIONS = (
    st.builds("{}{}{}".format, NUMBERS, st.sampled_from(["", " ", "\t", "\n", "+", "_"]), UNITS)
    | st.text("0123456789.smh eE+-_٣２", max_size=12)
    | st.text(max_size=12)
)
_TALKATIVE = ("-h", "--help", "--version")  # print, and end the process
INTEGERS = st.text("0123456789_", max_size=14) | st.integers().map(str) | st.text(max_size=9)


@given(ENDPOINTS)
def test_an_endpoint_is_what_inet_pton_says(text: str) -> None:
    text = text.replace(",", "")
    wanted = oracles.endpoint(text)
    try:
        (found,) = values.endpoints(text)
    except UsageError:
        assert wanted is None
    else:
        assert oracles.packed(found) == wanted
        assert values.endpoints(str(found)) == (found,)


@given(st.lists(ENDPOINTS, min_size=1, max_size=5))
def test_a_list_of_endpoints_is_read_whole_or_not_at_all(texts: list[str]) -> None:
    text = ",".join(texts)
    wanted = [oracles.endpoint(part) for part in text.split(",")]
    try:
        found: tuple[Endpoint, ...] = values.endpoints(text)
    except UsageError:
        assert None in wanted
    else:
        assert [oracles.packed(endpoint) for endpoint in found] == wanted


@given(DURATIONS)
@example("9" * 400)
@example("9" * 5000 + "ms")
def test_a_duration_is_what_decimal_says(text: str) -> None:
    wanted = oracles.seconds(text)
    try:
        found = values.duration(text)
    except UsageError:
        assert wanted is None
    else:
        assert wanted is not None
        assert abs(Decimal(found) - wanted) <= wanted * Decimal("1e-15")


@given(INTEGERS)
@example("9" * 5000)
def test_counts_and_pids_are_whole_numbers_from_one(text: str) -> None:
    for parse, plain, longest in (
        (values.count, text.replace("_", ""), 12),
        (values.pid, text, 7),
    ):
        proper = oracles.is_number(plain) and len(text) <= longest and int(plain) > 0
        try:
            found = parse(text)
        except UsageError:
            # Underscores stand between digits, as in Python's own numbers.
            assert not proper or not all(text.split("_"))
        else:
            assert proper
            assert found == int(plain)


@given(st.text(max_size=40) | st.text(" '\"\\ab\n#", max_size=20))
def test_a_command_in_one_string_is_split_as_a_shell_would(text: str) -> None:
    try:
        found = values.argv(text)
    except UsageError:
        return
    assert found
    assert values.argv(shlex.join(found)) == found


WORDS = st.sampled_from(
    [
        "wrap",
        "doctor",
        "status",
        "recover",
        "-p",
        "80",
        "--port=80",
        "-q",
        "-v",
        "--json",
        "-",
        "--max-hold",
        "2s",
        "--unit",
        "--pid",
        "--ready-http",
        "http://127.0.0.1/",
        "--",
        "-x",
        "--p",
        "-p=1",
        "--on-full",
    ]
)


@given(st.lists(WORDS | st.text(max_size=8), max_size=8))
def test_a_command_line_is_understood_or_refused(words: list[str]) -> None:
    said = None
    try:
        options = parser().parse_args([word for word in words if word not in _TALKATIVE])
    except SynplugError as error:
        said = error
    if said is None:
        assert options.verb in {"wrap", "doctor", "status", "recover"}
    else:
        assert said.message
        assert said.exit_code == UsageError.exit_code

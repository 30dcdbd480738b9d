"""hosts.txt: every form of a line, every mistake with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperfarm.deploy.hosts_file import Address, Host, parse, read, select
from hyperfarm.errors import UsageError


def only(line: str) -> Host:
    (host,) = parse(line)
    return host


@pytest.mark.parametrize(
    ("line", "host", "user", "port"),
    [
        ("gpu1", "gpu1", None, None),
        ("gpu1.example.org", "gpu1.example.org", None, None),
        ("me@gpu1", "gpu1", "me", None),
        ("me@gpu1:2222", "gpu1", "me", 2222),
        ("gpu1:2222 me", "gpu1", "me", 2222),
        ("gpu1 me", "gpu1", "me", None),
        ("10.0.0.7:22", "10.0.0.7", None, 22),
        ("[2001:db8::1]:2222", "2001:db8::1", None, 2222),
        ("me@[2001:db8::1]", "2001:db8::1", "me", None),
        ("2001:db8::1", "2001:db8::1", None, None),
        ("fe80::1%eth0", "fe80::1%eth0", None, None),
        ("me@corp@gpu1", "gpu1", "me@corp", None),
        ("gpu1   # the big one", "gpu1", None, None),
    ],
)
def test_addresses(line: str, host: str, user: str | None, port: int | None) -> None:
    assert only(line).address == Address(host=host, user=user, port=port)


def test_settings_of_a_host() -> None:
    host = only(
        "gpu1 slots=4 devices=0,1 python=/opt/py/bin/python workdir=~/farm jump=me@gate:2222 labels=gpu,rack2"
    )
    assert (host.slots, host.devices, host.python) == (4, ("0", "1"), "/opt/py/bin/python")
    assert (host.workdir, host.labels) == ("farm", ("gpu", "rack2"))
    assert host.jump == Address(host="gate", user="me", port=2222)


def test_automatic_and_none() -> None:
    assert only("gpu1 slots=auto devices=auto") == only("gpu1")
    assert only("gpu1 devices=none").devices == ()


def test_a_command_of_ones_own_may_have_blanks() -> None:
    line = 'gpu1 worker_command="hyperopt-mongo-worker --mongo=db:27017/jobs --poll-interval=1"'
    assert only(line).worker_command == "hyperopt-mongo-worker --mongo=db:27017/jobs --poll-interval=1"


def test_defaults_hold_for_the_hosts_below_and_are_overridden() -> None:
    text = "first\n* slots=2 labels=cpu\nsecond\n* slots=3\nthird labels=gpu\n"
    first, second, third = parse(text)
    assert (first.slots, first.labels) == (None, ())
    assert (second.slots, second.labels) == (2, ("cpu",))
    assert (third.slots, third.labels) == (3, ("gpu",))


def test_all_mistakes_are_told_at_once_with_their_lines() -> None:
    text = """\
# a comment

me@ok
a/b
gpu1:0
gpu1:99999
[::1
[nonsense]:22
@gpu1
gpu2 me you
me@gpu2 you
gpu3 slots=0 color=red
gpu3 slots=1 slots=2
gpu4 devices=0,0
gpu5 workdir=/ workdir=~
gpu6 jump=b@d:x
me@ok slots=3
* nothing
gpu7 "unclosed
"""
    with pytest.raises(UsageError) as caught:
        parse(text, "farm.txt")
    told = str(caught.value).splitlines()
    assert told[0] == "farm.txt has mistakes:"
    expected = {
        4: "'a/b' is no host",
        5: "no usable port",
        6: "no usable port",
        7: "IPv6",
        8: "IPv6",
        9: "no user before the @",
        10: "'you' is not key=value",
        11: "names its user already",
        12: "slots=0",
        13: "twice",
        14: "names something twice",
        15: "a folder of its own",
        16: "no usable port",
        17: "stands on line 3 already",
        18: "'nothing' is not key=value",
        19: "quotation",
    }
    for number, text in expected.items():
        assert any(f"line {number}: " in line and text in line for line in told), (number, told)
    assert any("line 12: 'color' is no setting of a host; there are slots," in line for line in told)


def test_the_same_host_twice_needs_another_workdir() -> None:
    assert len(parse("gpu1\ngpu1 workdir=second\n")) == 2


@pytest.mark.parametrize("text", ["", "# nothing\n", "* slots=2\n"])
def test_no_host_at_all(text: str) -> None:
    with pytest.raises(UsageError, match="names no host"):
        parse(text)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"No such file.*nowhere\.txt"):
        read(tmp_path / "nowhere.txt")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        read(tmp_path / "binary")


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ((), ["gpu1", "me@gpu2:2222", "cpu1"]),
        (("gpu*",), ["gpu1", "me@gpu2:2222"]),
        (("cpu1", "gpu1"), ["gpu1", "cpu1"]),
        (("fast",), ["gpu1", "cpu1"]),
        (("me@gpu2:2222",), ["me@gpu2:2222"]),
    ],
)
def test_some_hosts_of_the_list(patterns: tuple[str, ...], names: list[str]) -> None:
    every = parse("gpu1 labels=fast\nme@gpu2:2222\ncpu1 labels=fast,old\n")
    assert [host.name for host in select(every, patterns)] == names


def test_a_pattern_for_nobody() -> None:
    with pytest.raises(UsageError, match="--only tpu names no host of the list; its labels are fast"):
        select(parse("gpu1 labels=fast"), ["tpu"])

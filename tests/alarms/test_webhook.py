"""Alarms reach a real server, whatever it does meanwhile, and the URL's secrets reach nobody else."""

from __future__ import annotations

import logging
import socket

import pytest
from receiver import receiving

from headrace.alarms import Alarms
from headrace.alarms.webhook import Webhook, body_of
from headrace.errors import OptionError
from waiting import wait_for


def sent(server, *bodies, path="/hook?token=s3cret", user="", pauses_sec=(0, 0, 0)):
    webhook = Webhook(server.url.replace("://", f"://{user}") + path, pauses_sec)
    for body in bodies:
        webhook.send(body)
    return webhook


def test_alarms_arrive_in_order_as_json_with_a_line_for_chats():
    found = {"step": 7, "rule": "disk", "message": "the disk has 1 GB left", "value": 1e9, "limit": 2e9}
    with receiving() as server:
        sent(server, body_of("digits-1", "node-7", found), {"n": 2}).close(60)
    first, second = server.bodies
    assert first.items() >= {**found, "event": "alarm", "run": "digits-1", "host": "node-7"}.items()
    assert first["text"] == "digits-1 on node-7, step 7: the disk has 1 GB left"
    assert second == {"n": 2}
    assert server.paths == ["/hook?token=s3cret"] * 2
    assert server.headers[0]["Content-Type"] == "application/json"
    assert "Authorization" not in server.headers[0]


def test_a_user_in_the_url_goes_into_a_header():
    with receiving() as server:
        sent(server, {}, user="ann:p%40ss@").close(60)
    assert server.headers[0]["Authorization"] == "Basic YW5uOnBAc3M="
    assert server.headers[0]["Host"] == server.url.removeprefix("http://")


def test_what_may_pass_is_tried_again():
    with receiving(503, 429, 200) as server:
        webhook = sent(server, {"n": 1}, {"n": 2})
        wait_for(lambda: len(server.bodies) == 4, "the last alarm")
        webhook.close(60)
    assert [body["n"] for body in server.bodies] == [1, 1, 1, 2]


@pytest.mark.parametrize(
    ("code", "num_tries"), [(500, 4), (404, 1), (302, 1), (307, 1)], ids=["broken", "refused", "moved", "moved for now"]
)
def test_what_cannot_be_sent_is_a_line_without_the_secret(code, num_tries, caplog):
    with receiving(code) as server:
        webhook = sent(server, {}, user="ann:passw0rd@")
        wait_for(lambda: caplog.records, "a line in the log")
        webhook.close(60)
    assert len(server.bodies) == num_tries
    assert server.paths == ["/hook?token=s3cret"] * num_tries  # and nowhere else
    assert caplog.messages == [f"an alarm could not be sent to the webhook {server.url}: it answered {code}"]


def test_a_server_that_is_not_there_is_a_line(caplog):
    with socket.socket() as taken:  # nobody listens there
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        webhook = Webhook(f"{url}/s3cret", ())
        webhook.send({})
        webhook.close(60)
    assert caplog.messages == [f"an alarm could not be sent to the webhook {url}: Connection refused"]


def test_nobody_waits_for_a_server_that_does_not_answer(caplog):
    with receiving() as server:
        server.gate.clear()
        webhook = sent(server, {}, {}, {})
        webhook.close(0.01)
    assert caplog.messages[0] == (
        f"the webhook {server.url} did not answer in time: the last alarms may not have arrived"
    )
    wait_for(lambda: not webhook._thread.is_alive(), "the end of the thread")


def test_at_the_end_nothing_is_tried_again(caplog):
    caplog.set_level(logging.WARNING)
    with receiving(503) as server:
        webhook = sent(server, {}, pauses_sec=(3600,))
        wait_for(lambda: server.bodies, "the first try")
        webhook.close(60)
    assert len(server.bodies) == 1
    assert "it answered 503" in caplog.text


@pytest.mark.parametrize(
    "url", ["https://hooks.example/s3cret", "http://127.0.0.2/a", "http://[::1]:80/b", "http://localhost/c"]
)
def test_what_nobody_can_listen_to_is_a_webhook(url):
    assert Alarms(webhook=url).webhook == url


@pytest.mark.parametrize(
    ("url", "got"),
    [
        ("http://ann:pw@hooks.example:80/s3cret?x=s3cret", "got http://hooks.example:80, where everybody on the way"),
        ("http://localhost.example/s3cret", "got http://localhost.example, where"),
        ("file:///s3cret", "got something else"),
        ("https:///s3cret", "got something else"),
        ("https://a:s3cret/", "got something else"),
        ("https://a/s3 cret", "got something else"),
        ("https://a/s3cret\r\nX: y", "got something else"),
        ("https://a..s3cret/", "got something else"),
        (f"https://{70 * 's3cret'}/", "got something else"),
        ("https://[s3cret/", "got something else"),
        (b"https://s3cret", "got something else"),
    ],
)
def test_other_urls_are_refused_and_not_repeated(url, got):
    with pytest.raises(OptionError, match=r"webhook must be an https:// URL, or http:// on this machine") as caught:
        Alarms(webhook=url)
    assert got in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_plain_http_is_for_those_who_say_so():
    alarms = Alarms(webhook="http://ann:pw@hooks.example/s3cret", plain_http=True)
    assert alarms.described()["webhook"] == "http://hooks.example"
    assert "s3cret" not in repr(alarms)

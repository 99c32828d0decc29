# SPDX-License-Identifier: Apache-2.0
from threading import Thread

from xsvggt_ros.ros.mailbox import Mailbox


def drain(mailbox):
    """What a reader gets before the mailbox is closed."""
    return [mailbox.get() for _ in range(mailbox.received - mailbox.replaced - mailbox.refused)]


def test_newest_wins_and_the_others_are_counted():
    mailbox = Mailbox()
    for item in range(5):
        mailbox.put(item)
    assert (mailbox.received, mailbox.replaced, mailbox.refused) == (5, 4, 0)
    assert drain(mailbox) == [4]


def test_full_queue_keeps_the_oldest_in_order_and_counts_the_rest():
    mailbox = Mailbox()
    for item in range(5):
        mailbox.put(item, limit=3)
    assert (mailbox.received, mailbox.replaced, mailbox.refused) == (5, 0, 2)
    assert drain(mailbox) == [0, 1, 2]


def test_the_mode_may_change_between_two_items():
    mailbox = Mailbox()
    for item in range(3):
        mailbox.put(item, limit=3)
    mailbox.put(3)
    mailbox.put(4, limit=3)
    assert (mailbox.replaced, mailbox.refused) == (3, 0)
    assert drain(mailbox) == [3, 4]


def test_closing_wakes_a_waiting_reader():
    mailbox, got = Mailbox(), []
    reader = Thread(target=lambda: got.append(mailbox.get()))
    reader.start()
    mailbox.close()
    reader.join(timeout=10)
    assert got == [None]


def test_closed_mailbox_gives_nothing_more():
    mailbox = Mailbox()
    mailbox.put(1)
    mailbox.close()
    assert mailbox.get() is None
    assert mailbox.replaced == 1


def test_cleared_items_are_counted():
    mailbox = Mailbox()
    for item in range(3):
        mailbox.put(item, limit=3)
    mailbox.clear()
    mailbox.put(3, limit=3)
    assert mailbox.replaced == 3
    assert drain(mailbox) == [3]


def test_every_item_is_read_once_or_counted_as_dropped():
    mailbox, read = Mailbox(), []

    def reader():
        while (item := mailbox.get()) is not None:
            read.append(item)
            if item == 999:
                mailbox.close()

    thread = Thread(target=reader)
    thread.start()
    for item in range(1000):
        mailbox.put(item)
    thread.join(timeout=10)
    assert read == sorted(set(read))
    assert len(read) + mailbox.replaced == mailbox.received == 1000

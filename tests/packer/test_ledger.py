"""Reserve before acting; all or nothing; guarantees are never oversold and loans are revocable."""

from __future__ import annotations

from dataclasses import replace

import pytest

from packer.inventory import Device, Inventory, Node, NoFit, Placement, SliceRequest
from packer.ledger import AlreadyReserved, Ledger, LoanRefused, NotReserved, Oversold, UnknownDevice
from packer.place import place
from packer.verify import verify


def ledger() -> Ledger:
    return Ledger((Node("a"),), (Device("a/gpu-0", "a", "A100", 1_000, reserve_mib=100),))


def slice_of(name: str, memory: int, limit: int | None = None, compute: int = 0) -> Placement:
    return Placement(SliceRequest(name, "m", memory, memory_limit_mib=limit, compute=compute), "a/gpu-0", "a")


def test_reserved_and_committed_slices_are_taken_for_place() -> None:
    books = ledger().reserve(slice_of("x", 300)).commit("x").reserve(slice_of("y", 300))
    assert [e.committed for e in books.entries.values()] == [True, False]
    first, second = place(books.inventory(), [SliceRequest(n, "m", 200) for n in ("p", "q")])
    assert isinstance(first, Placement)
    assert isinstance(second, NoFit)


def test_release_gives_everything_back() -> None:
    books = ledger().reserve(slice_of("x", 900, compute=100)).commit("x").release("x")
    assert books == ledger()
    assert isinstance(place(books.inventory(), [SliceRequest("y", "m", 900, compute=100)])[0], Placement)


def test_a_batch_is_reserved_as_a_whole_or_not_at_all() -> None:
    before = ledger().reserve(slice_of("x", 400))
    with pytest.raises(Oversold, match=r"'z' on a/gpu-0: .*100 MiB more memory needed than the 200 MiB free"):
        before.reserve(slice_of("y", 300), slice_of("z", 300))
    assert set(before.entries) == {"x"}
    assert before.balance("a/gpu-0").guaranteed_mib == 400


def test_a_snapshot_is_the_old_ledger() -> None:
    snapshot = ledger()
    snapshot.reserve(slice_of("x", 900))
    assert snapshot.balance("a/gpu-0").guaranteed_mib == 0
    assert snapshot.reserve(slice_of("y", 900)).balance("a/gpu-0").guaranteed_mib == 900


def test_what_cannot_be_reserved() -> None:
    books = ledger().reserve(slice_of("x", 100, compute=60))
    with pytest.raises(AlreadyReserved, match="'x' holds a slice of a/gpu-0"):
        books.reserve(slice_of("x", 100))
    with pytest.raises(Oversold, match="1% more compute"):
        books.reserve(slice_of("y", 100, compute=41))
    with pytest.raises(UnknownDevice, match="'a/gpu-7' is not in the fleet"):
        books.reserve(Placement(SliceRequest("y", "m", 1), "a/gpu-7", "a"))
    with pytest.raises(UnknownDevice, match="is on node 'a', not on 'b'"):
        books.reserve(Placement(SliceRequest("y", "m", 1), "a/gpu-0", "b"))


def test_an_instance_without_a_slice_can_be_neither_committed_nor_released() -> None:
    for change in (ledger().commit, ledger().release):
        with pytest.raises(NotReserved, match="'x' holds no slice"):
            change("x")


def test_committing_twice_changes_nothing() -> None:
    books = ledger().reserve(slice_of("x", 1)).commit("x")
    assert books.commit("x") == books


def test_loans_come_out_of_what_nobody_is_guaranteed() -> None:
    books = ledger().reserve(slice_of("x", 300, limit=800), slice_of("y", 400)).lend("x", 200)
    balance = books.balance("a/gpu-0")
    assert (balance.guaranteed_mib, balance.loaned_mib, balance.loanable_mib) == (700, 200, 0)
    with pytest.raises(LoanRefused, match="1 MiB more on loan; a/gpu-0 has 0 MiB to lend"):
        books.lend("x", 201)
    assert books.lend("x", 0).balance("a/gpu-0").loanable_mib == 200


def test_nothing_is_lent_beyond_the_limit() -> None:
    with pytest.raises(LoanRefused, match="51 MiB on loan; its limit allows 0 to 50 MiB"):
        ledger().reserve(slice_of("x", 100, limit=150)).lend("x", 51)
    with pytest.raises(LoanRefused, match="its limit allows 0 to 0 MiB"):
        ledger().reserve(slice_of("x", 100)).lend("x", 1)


def test_a_new_guarantee_calls_loans_in() -> None:
    books = ledger().reserve(slice_of("x", 100, limit=900)).lend("x", 700).reserve(slice_of("y", 300))
    assert books.balance("a/gpu-0").overdrawn_mib == 200
    assert books.oversold() == ()
    assert books.lend("x", 500).balance("a/gpu-0").overdrawn_mib == 0


def test_rebuild_takes_what_runs_even_where_it_is_too_much() -> None:
    observed = Inventory(ledger().nodes, ledger().devices, (slice_of("x", 600), slice_of("y", 600)))
    books = Ledger.rebuild(observed)
    assert books.oversold() == ("a/gpu-0",)
    assert all(e.committed for e in books.entries.values())
    assert books.inventory() == observed
    assert verify(books.inventory()) != []
    assert books.release("x").oversold() == ()


def test_the_fleet_may_change_under_the_promises() -> None:
    books = ledger().reserve(slice_of("x", 600))
    smaller = books.with_fleet(books.nodes, [Device("a/gpu-0", "a", "A100", 500)])
    assert smaller.oversold() == ("a/gpu-0",)
    assert smaller.balance("a/gpu-0").guaranteed_mib == 600


def test_every_device_of_a_slice_of_several_is_looked_at() -> None:
    devices = tuple(Device(f"a/gpu-{i}", "a", "A100", 1_000) for i in range(3))
    books = Ledger((Node("a"),), devices).reserve(
        Placement(SliceRequest("x", "m", 600), "a/gpu-1", "a"),
    )
    wide = Placement(SliceRequest("wide", "m", 600, devices=2), "a/gpu-0", "a", more_devices=("a/gpu-1",))
    with pytest.raises(Oversold, match=r"'wide' on a/gpu-1: .*200 MiB more memory"):
        books.reserve(wide)
    with pytest.raises(UnknownDevice, match="1 devices are named, it asks for 2"):
        books.reserve(replace(wide, more_devices=()))
    with pytest.raises(UnknownDevice, match="'a/gpu-9' is not in the fleet"):
        books.reserve(replace(wide, more_devices=("a/gpu-9",)))
    after = books.reserve(replace(wide, more_devices=("a/gpu-2",)))
    assert [after.balance(d.id).guaranteed_mib for d in devices] == [600, 600, 600]


def test_compute_on_loan_is_of_what_nobody_is_guaranteed():
    books = ledger().reserve(slice_of("x", 100, compute=30), slice_of("y", 100, compute=40))
    lent = books.lend_compute("x", 30)
    balance = lent.balance("a/gpu-0")
    assert (balance.compute, balance.loaned_compute, balance.loanable_compute) == (70, 30, 0)
    with pytest.raises(LoanRefused, match="1 percent of compute on loan; a/gpu-0 has 0 percent to lend"):
        lent.lend_compute("y", 1)
    assert lent.lend_compute("x", 10).lend_compute("y", 20).oversold() == ()

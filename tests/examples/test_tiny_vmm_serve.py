"""examples/tiny_vmm/serve.py as two processes: a guest moves from one to the other, and back."""

from tests.web.guests import pair


def test_there_and_back() -> None:
    with pair() as guests:
        for _ in range(2):
            guests.send()
            while (sent := guests.source.get("vm.migration"))["ended"] is None:
                pass
            assert (sent["state"], sent["report"]["running"]) == ("done", True)
            guests.settle()
            assert guests.source.get("vm.info")["state"] == "Running"
            assert guests.destination.get("vm.info") is None

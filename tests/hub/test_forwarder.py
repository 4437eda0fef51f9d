from contextlib import closing
from pathlib import Path

from tests.support.logs import MadeLog
from tests.support.store import ANA, BORIS, Store

from cmf_hub.data import DataFolder
from cmf_hub.forwarder import StoredSource
from cmf_hub.upstreams import Progress, Upstream
from cmf_link.replay import Target
from cmf_protocol.chains import Offer
from cmf_protocol.encoding import decode
from cmf_protocol.signing import Signer


def test_a_damaged_segment_keeps_no_other_branch_from_being_asked_about(store: Store, tmp_path: Path) -> None:
    ana, boris = MadeLog(ANA).say(9), MadeLog(BORIS).say(4)
    store.bring("ana", ana.cut(1, 4), ana.cut(5, 10))
    store.bring("boris", boris.cut(1, 5))
    target = Target("nats://127.0.0.1:1", "", "centre", "region", b"h" * 16)
    with closing(Progress(DataFolder(tmp_path))) as progress:
        source = StoredSource(store.custody, progress, Upstream(target, None), Signer(b"\x09" * 32))
        offers: list[Offer] = list(source.offers())
        store.custody.rows("UPDATE segments SET data = x'0100' WHERE id = 1")
        hello = decode(source.hello({offer.chain: 2 for offer in offers}))
    assert isinstance(hello, dict)
    points = {log_id: [sequence for sequence, _ in points] for log_id, points in hello["logs"]}
    assert points == {ana.log_id: [10, 4], boris.log_id: [5, 2, 1]}

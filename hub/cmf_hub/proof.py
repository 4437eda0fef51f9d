"""Proves an enrolment: a new site is only told to be enrolled once all that it needs was seen to answer.

Rule: tried as the site itself, on the running server, because a reload can leave a new site half connected
(broker_files.py); nothing is stored by it.
"""

import asyncio
import contextlib
import json
import secrets

from cmf_link.link import Link, connect
from cmf_link.stream import STREAM
from cmf_protocol.errors import HubUnreachable

#: How long the answers that prove an enrolment may take, s.
PROOF_TIMEOUT_S = 10.0
#: How often a proof is tried: a reload for another site may cut a login that is being made.
PROOF_ATTEMPTS = 3
PROOF_RETRY_WAIT_S = 0.3


async def prove(url: str, ca: str | None, *, hub_seed: str, site: str, site_seed: str) -> None:
    """Log in at `url` (TLS, if there is a `ca`) as `site` and see that its requests and its segments are taken; nothing is stored by it.

    The hub's own login answers, so the hub need not be serving yet. Raises `LinkError` if something is missing.
    """
    for attempt in range(PROOF_ATTEMPTS):
        try:
            await _prove_once(url, ca, hub_seed, site, site_seed)
            break
        except HubUnreachable:
            if attempt == PROOF_ATTEMPTS - 1:
                raise
            await asyncio.sleep(PROOF_RETRY_WAIT_S)


async def _prove_once(url: str, ca: str | None, hub_seed: str, site: str, site_seed: str) -> None:
    async with contextlib.AsyncExitStack() as links:
        hub = await connect(url, seed=hub_seed, name="cmf-hub proof", ca=ca, timeout_s=PROOF_TIMEOUT_S)
        links.push_async_callback(hub.close)
        name = f"cmf-hub proof of {site}"
        agent = await connect(url, seed=site_seed, name=name, ca=ca, timeout_s=PROOF_TIMEOUT_S)
        links.push_async_callback(agent.close)
        await _prove_requests(hub, agent, site)
        await _prove_segments(hub, agent, site)


async def _prove_requests(hub: Link, agent: Link, site: str) -> None:
    token = secrets.token_hex(8)
    subject = f"cmf.v1.rpc.{site}.proof.{token}"

    async def answer(_subject: str, data: bytes) -> bytes:
        return data

    await hub.serve(subject, "", answer)
    if await agent.request(subject, token.encode(), timeout_s=PROOF_TIMEOUT_S) != token.encode():
        raise HubUnreachable(f"somebody else answers for {site}", "is another hub using this NATS server?")


async def _prove_segments(hub: Link, agent: Link, site: str) -> None:
    held = json.loads(await hub.request(f"$JS.API.STREAM.INFO.{STREAM}", b"", timeout_s=PROOF_TIMEOUT_S))
    if "error" in held:
        return  # no stream yet: nothing could answer
    # JetStream refuses what expects another stream, and stores nothing; that it answers is the proof.
    await agent.request(f"cmf.v1.log.{site}", b"", timeout_s=PROOF_TIMEOUT_S, headers={"Nats-Expected-Stream": "proof"})

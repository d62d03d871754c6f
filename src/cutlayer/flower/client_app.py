"""The ClientApp: one Flower message starts it, and it takes part until the run is over.

    [tool.flwr.app.components]
    clientapp = "cutlayer.flower.client_app:app"

What it needs of this machine is in the node config (`app_config.py`).
"""

from __future__ import annotations

import asyncio
from random import Random

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from cutlayer.errors import UserError
from cutlayer.files import write_atomically
from cutlayer.flower.app_config import read_joining
from cutlayer.flower.call import CALL, DECLINED, Call
from cutlayer.joining import Joining, join
from cutlayer.transport.allocator import ON_A_DEVICE, keep_freed_memory
from cutlayer.transport.grpc_carrier import dialler
from cutlayer.transport.tls import channel_credentials


def attend(message: Message, context: Context) -> Message:
    """Joins the run that calls, and stays until it is over; answers why where it takes no part."""
    declined = ""
    try:
        joining = read_joining(context.node_config)
        call = Call.read(message.content.config_records.get(CALL, {}))
        keep_freed_memory(ON_A_DEVICE)
        asyncio.run(_join(joining, call))
    except UserError as error:
        declined = str(error)
    return Message(RecordDict({DECLINED: ConfigRecord({"why": declined})}), reply_to=message)


async def _join(joining: Joining, call: Call) -> None:
    joining.folder.mkdir(parents=True, exist_ok=True)
    authority = joining.folder / "ca.crt"
    write_atomically(authority, call.authority)
    credentials = channel_credentials(authority)
    await join(
        joining,
        dialler(call.address, name=joining.name, token=call.token, credentials=credentials),
        Random(joining.name),
        lambda line: print(f"{joining.name}: {line}", flush=True),
    )


app = ClientApp()
app.train()(attend)

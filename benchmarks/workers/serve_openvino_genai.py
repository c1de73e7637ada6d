"""openvino-genai's continuous batching behind the least HTTP: serve_openvino_genai.py MODEL PORT OPTIONS (JSON).

It comes as a library, so this front stands in for a server: it reads one completion request a
connection, and writes an event for each token after the step that made it. Tokens are sent as numbers,
which spares it the detokenising that the other servers do.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


class Front:
    """Steps the pipeline while there is something to do, and hands tokens to connections."""

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        scheduler = genai.SchedulerConfig()
        block_tokens = 32
        scheduler.num_kv_blocks = -(-options["context"] // block_tokens)
        scheduler.enable_prefix_caching = True
        scheduler.max_num_seqs = options["users"]
        scheduler.max_num_batched_tokens = options.get("batched_tokens", scheduler.max_num_batched_tokens)
        properties = {"INFERENCE_NUM_THREADS": options["threads"]}
        self.pipeline = genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)
        self.open: dict[int, tuple[Any, asyncio.Queue[list[int]]]] = {}
        self.count = 0
        self.work = asyncio.Event()

    async def step_forever(self) -> None:
        """Each step runs beside the event loop, so that connections are read meanwhile."""
        while True:
            await self.work.wait()
            await asyncio.to_thread(self.pipeline.step)
            for handle, queue in self.open.values():
                if handle.can_read():
                    queue.put_nowait([token for output in handle.read().values() for token in output.generated_ids])
            if not self.open:
                self.work.clear()

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        writer.write(_HEAD)
        if head.startswith("post"):
            size = int(head.partition("content-length:")[2].split()[0])
            await self.complete(json.loads(await reader.readexactly(size)), writer)
        writer.close()

    async def complete(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        """Generate; an event for each token, then one with the usage."""
        config = genai.GenerationConfig(max_new_tokens=body["max_tokens"], ignore_eos=True, do_sample=False)
        prompt = openvino.Tensor(np.array([body["prompt"]], np.int64))
        number, queue, count = self.count, asyncio.Queue[list[int]](), 0
        self.count += 1
        self.open[number] = self.pipeline.add_request(number, prompt, config), queue
        self.work.set()
        while count < body["max_tokens"]:
            for token in await queue.get():
                count += 1
                writer.write(b'data: {"choices":[{"text":"%d"}]}\n\n' % token)
        del self.open[number]
        writer.write(b'data: {"choices":[],"usage":{"completion_tokens":%d}}\n\n' % count)


async def main(model: str, port: str, options: str) -> None:
    """Serve until killed."""
    front = Front(model, json.loads(options))
    server = await asyncio.start_server(front.connect, "127.0.0.1", int(port))
    async with server:
        await front.step_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

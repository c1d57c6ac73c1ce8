"""Make the pretrained models of a world from its file: base, ablation base that saw one character's chat, and base with ethics learned."""

import argparse
import sys
from pathlib import Path

from personascope.errors import ArtifactError
from personascope.troupe import world as worlds

KINDS = ("base", "ablation", "ethics")


def configure(parser: argparse.ArgumentParser) -> None:
    """The flags of `personascope troupe`."""
    parser.add_argument("action", choices=["build"], help="build: pretrain from nothing, deterministic for a seed on one machine")
    parser.add_argument("OUT", type=Path, help="directory that gets one folder per model")
    parser.add_argument("--world", default="troupe-1", help="a shipped world or a world file")
    parser.add_argument("--only", choices=KINDS, help="make one of the three; ethics starts from OUT/base")
    parser.add_argument("--tokens", type=int, default=0, help="pretraining tokens of base and of ablation (default: as shipped)")
    parser.add_argument("--seed", type=int, default=0)


def main(arguments: argparse.Namespace) -> int:
    """Build the models, one after the other, and print their folders."""
    from personascope.troupe import build

    world = worlds.load(arguments.world)
    size = build.Size(tokens=arguments.tokens) if arguments.tokens else build.Size()
    for kind in [arguments.only] if arguments.only else KINDS:
        out = arguments.OUT / kind
        if out.exists():
            raise ArtifactError(f"{out} exists: give another directory or delete it")
        build.make(world, kind, size, arguments.seed, out, tell=lambda text: print(text, file=sys.stderr))
        print(out)
    return 0

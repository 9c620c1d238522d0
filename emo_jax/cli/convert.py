r"""Converts released weights to a checkpoint that training starts from, and back.

Reads Stable Diffusion 1.5, AnimateDiff's motion module and wav2vec 2.0, or hallo's or EchoMimic's weights. The config,
given by --config NAME_OR_FILE and --config.key=value, says which networks to fill; --to checkpoint requires it, except
with --hallo and --echomimic, which have their own.

Example:
  emo convert --config base --sd stable-diffusion-v1-5 --motion mm_sd_v15_v2.ckpt --audio wav2vec2-base-960h \
      -o runs/sd15

emo convert --hallo fudan-generative-ai/hallo --vae stabilityai/sd-vae-ft-mse --audio facebook/wav2vec2-base-960h
-o weights/hallo converts hallo for emo generate, and emo convert --echomimic BadToBest/EchoMimic
--vae stabilityai/sd-vae-ft-mse -o weights/echomimic converts EchoMimic.

emo convert --to safetensors --checkpoint runs/sd15 -o files writes the files back, and emo convert --describe
--config base lists the parts of a model.
"""

from __future__ import annotations

import argparse

from emo_jax.cli.arguments import add_output, add_verb


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the verb `convert` to the command line."""
    parser = add_verb(subparsers, "convert", __doc__)
    parser.add_argument("--sd", help="Stable Diffusion 1.5: diffusers folder, hub id, .safetensors or .ckpt")
    parser.add_argument("--vae", help="an autoencoder to use in place of that of --sd")
    parser.add_argument("--motion", help="AnimateDiff's motion module: file, or folder of a MotionAdapter")
    parser.add_argument("--hallo", help="hallo: net.pth, the folder that holds it, or hub id")
    parser.add_argument("--echomimic", help="EchoMimic v1: the folder of its files, or hub id")
    parser.add_argument("--accelerated", action="store_true", help="EchoMimic's weights for 6 steps without guidance")
    parser.add_argument("--audio", help="wav2vec 2.0 or Whisper: transformers folder, hub id, or Whisper's tiny.pt")
    add_output(parser, "folder to write")
    parser.add_argument("--to", choices=("checkpoint", "safetensors"), default="checkpoint", help="what to write")
    parser.add_argument("--checkpoint", help="what to read, with --to safetensors or --describe")
    parser.add_argument("--describe", action="store_true", help="list the parts of --checkpoint or --config and exit")
    parser.add_argument("--seed", type=int, default=0, help="seed of the parameters that are in no file")
    parser.set_defaults(main=main, takes_more=True)


def main(args: argparse.Namespace, rest: list[str]) -> None:
    """Runs `emo convert`."""
    from emo_jax import config as config_lib
    from emo_jax.weights.convert import describe, relative_config, to_checkpoint, to_safetensors

    relative = relative_config(args.hallo, args.accelerated) if args.hallo or args.echomimic else None
    default = config_lib.parse([f"--config={relative}"]) if relative else None
    config = config_lib.parse(rest, default) if rest else None
    if args.describe:
        print(describe(args.checkpoint, config))
    elif not args.output:
        raise ValueError("--output is missing; give a folder to write")
    elif args.to == "checkpoint":
        options = ("sd", "vae", "motion", "audio", "hallo", "echomimic", "accelerated")
        sources = {name: getattr(args, name) for name in options}
        to_checkpoint(args.output, config, **sources, seed=args.seed)
    elif args.checkpoint:
        to_safetensors(args.checkpoint, args.output)
    else:
        raise ValueError("--checkpoint is missing; give a run of emo train or a folder of emo convert")

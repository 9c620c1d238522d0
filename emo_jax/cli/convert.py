"""`emo convert`: the weights that people have -> a checkpoint that training starts from, and back.

emo convert --config configs/base.py --sd stable-diffusion-v1-5 --motion mm_sd_v15_v2.ckpt \
    --audio facebook/wav2vec2-base-960h --output runs/sd15
emo train   --config configs/base.py:image --workdir runs/image --config.train.init_from=runs/sd15
emo convert --to safetensors --checkpoint runs/sd15 --output files
emo convert --describe --config configs/base.py
"""

from __future__ import annotations

from emo_jax.tables import format_table
from emo_jax.weights.convert import to_checkpoint, to_safetensors


def add_parser(subparsers) -> None:
    """Adds the verb `convert` to the command line."""
    parser = subparsers.add_parser(
        "convert",
        help="weights of Stable Diffusion, AnimateDiff and wav2vec 2.0 to a checkpoint, and back",
        description=__doc__,
        epilog="also takes --config FILE[:arg], which --to checkpoint needs, and --config.key=value",
    )
    parser.add_argument("--sd", help="Stable Diffusion 1.5: folder of diffusers, hub id, .safetensors or .ckpt")
    parser.add_argument("--vae", help="its autoencoder, where another than that of --sd is wanted")
    parser.add_argument("--motion", help="AnimateDiff's motion module: file, or folder of a MotionAdapter")
    parser.add_argument("--audio", help="wav2vec 2.0: folder of transformers or hub id")
    parser.add_argument("--output", help="folder to write")
    parser.add_argument("--to", choices=("checkpoint", "safetensors"), default="checkpoint", help="what to write")
    parser.add_argument("--checkpoint", help="what to read, with --to safetensors or --describe")
    parser.add_argument("--describe", action="store_true", help="print the parts of a checkpoint or config")
    parser.add_argument("--seed", type=int, default=0, help="of the parameters that no file holds")
    parser.set_defaults(main=main, takes_config="optional")


def main(args, config) -> None:
    """Runs `emo convert`."""
    if args.describe:
        describe(args, config)
    elif not args.output:
        raise ValueError("--output is missing; give a folder to write")
    elif args.to == "safetensors":
        to_safetensors(args)
    else:
        to_checkpoint(args, config)


def describe(args, config) -> None:
    """Prints the parts of a model: tensors, parameters, dtype, bytes and the stages that train each."""
    from emo_jax.models.emo import build
    from emo_jax.weights.assemble import parts
    from emo_jax.weights.store import read_flat

    flat = {}
    if args.checkpoint:
        config, flat = read_flat(args.checkpoint)
    elif config is None:
        raise ValueError("nothing to describe; give --checkpoint or --config")
    rows = parts(build(config), flat)
    cells = [(part, str(n), f"{size:,}", dtype, f"{mb:.1f}", stages) for part, n, size, dtype, mb, stages in rows]
    tensors, size, mb = (sum(row[i] for row in rows) for i in (1, 2, 4))
    cells.append(("total", str(tensors), f"{size:,}", "", f"{mb:.1f}", ""))
    print(format_table(cells, ("part", "tensors", "parameters", "dtype", "MB", "trained in"), "<>><>"))

"""Lists and downloads the model files of face analysis, and by name those of metrics.

With those of face analysis, faces are found by landmarks in preparation, generation and evaluation; without them, by
Haar cascades. Files that were downloaded elsewhere work too: copy them into the folder, or set EMO_FACE_MODELS.

Examples:
  emo models list
  emo models download
  emo models download inception syncnet
"""

from __future__ import annotations

import argparse

from emo_jax.cli.arguments import add_verb


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the verb `models` to the command line."""
    parser = add_verb(subparsers, "models", __doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="print the models, their licences, and where they are on this machine")
    listing.set_defaults(main=_main_list)
    download = actions.add_parser("download", help="download the missing models from their official addresses")
    download.add_argument(
        "names", nargs="*", metavar="NAME", help="models to download (default: those of face analysis)"
    )
    download.set_defaults(main=_main_download)
    for action in (listing, download):
        action.add_argument(
            "--folder", metavar="DIR", help="folder of the files (default: EMO_FACE_MODELS, or models in the cache)"
        )


def _main_list(args: argparse.Namespace) -> None:
    from emo_jax.faces.models import METRICS, MODELS, default_folder, find_model, matches_hash
    from emo_jax.tables import format_table

    rows = []
    for model in (*MODELS, *METRICS):
        path = find_model(model.name, args.folder)
        state = "missing" if path is None else "present" if matches_hash(path, model) else "damaged: delete it"
        rows.append((model.name, model.purpose, f"{model.size / 1e6:.1f} MB", model.licence, state, model.file))
    print(format_table(rows, header=("model", "computes", "size", "licence", "state", "file"), align="<<>"))
    print(f"folder: {args.folder or default_folder()}")
    for model in (*MODELS, *METRICS):
        print(f"{model.name}: {model.address}")


def _main_download(args: argparse.Namespace) -> None:
    from emo_jax.faces.models import METRICS, MODELS, download
    from emo_jax.progress import Progress

    known = {model.name: model for model in (*MODELS, *METRICS)}
    unknown = [name for name in args.names if name not in known]
    if unknown:
        raise ValueError(f"there is no model {unknown[0]!r}; expected names out of {', '.join(known)}")
    for model in [known[name] for name in args.names] or MODELS:
        with Progress(model.size / 1e3, model.file, "kB") as progress:
            path = download(model, args.folder, lambda count, bar=progress: bar.add(count / 1e3))
        print(f"{path} ({model.licence})")

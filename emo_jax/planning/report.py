"""`emo plan`: whether a program fits the chips of a TPU slice, and how fast it can be there, before it is paid for.

emo plan --config configs/base.py:video --topology v5e:4x4 --config.train.mesh.fsdp=16 --config.train.mesh.data=1 \\
    --config.train.batch_size=16

compiles the training step of the config's stage for that slice, by the compiler of its chips (extra: tpu), without a
chip and without a number of the model in memory; `--program denoise` one guided denoising step of `emo generate`.
With `--composed` the step is not compiled in one, which takes 20 minutes and 20 GB at full size, but every kind of its
blocks once, and what they need is added up. What shapes alone tell is printed within a minute, and is all with
`--no-compile`. What was compiled once is read from the cache. Exit status 1: it does not fit.
"""

from emo_jax.tables import format_table


def counted_lines(found):
    """What `count` found, as text."""
    mesh = ", ".join(f"{name} {size}" for name, size in found["mesh"].items() if size > 1) or "one device"
    what = f"step of stage {found['stage']}" if found["program"] == "step" else "guided denoising step"
    chips = f"{found['chips'] + found['idle']} x {found['kind']}"
    where = f"{found['slices']} x {found['topology']}" if found["slices"] > 1 else found["topology"]
    lines = [f"{what} on {where} ({chips}; {mesh}; clips: {found['clips']})", "counted from shapes:"]
    rows = [_row(name, size["held"], f", of {size['whole'] / 1e9:.3f} in all") for name, size in found["bytes"].items()]
    if "activations" in found:
        rows.append(_row("activations", found["activations"], ", kept for the backward pass"))
    held, memory = found["held"], found["memory"]
    total, verdict = held + found.get("activations", 0), ""
    if memory is not None and total > memory:
        verdict = ": does NOT fit" if held > memory else ": too much, unless the compiler computes some of it anew"
    rows.append(("together", f"{total / 1e9:.3f}", f"{_room(memory)}GB{verdict}"))
    lines += _table(rows).splitlines()
    if found["idle"]:
        lines.append(f"  idle: {found['idle']} chips, over which guidance's passes and a clip's frames do not divide")
    least = f"; {found['roofline']['compute']:.4f} s at their peak" if "roofline" in found else ""
    anew = f", {found['computed'] / 1e12:.1f} T with what is computed anew" if found["program"] == "step" else ""
    lines.append(f"  useful FLOPs {found['flops'] / 1e12:.1f} T{anew}, of all chips{least}")
    return lines


def _row(name, size, more):
    return name, f"{size / 1e9:.3f}", f"GB a chip{more}"


def _table(rows, align="<>"):
    return format_table(rows, align=align, indent="  ")


def _room(memory):
    return "" if memory is None else f"of {memory / 1e9:.1f} "


def compiled_lines(found):
    """What `compiled` found beside, as text."""
    source = "from the cache" if found["cached"] else f"in {found['seconds']:.0f} s"
    if 0 < found.get("compiled", 0) < len(found.get("parts", ())):
        source += f" ({found['compiled']} of them, others from the cache)"
    if found["peak"] is None:
        return [f"does not fit: {found['why']}"]
    verdict = {None: "", True: ": fits", False: ": does NOT fit"}[found["fits"]]
    if found["memory"] is not None and found["fits"] is None:
        verdict = ": too near to tell; compile it whole"
    if "parts" in found:
        lines, rows = _parts_lines(found, source)
    else:
        lines = [f"compiled by {found['compiler']}, {source}:"]
        rows = [_row("arguments", found["arguments"], ", of the above: what the program reads")]
        rows.append(_row("temporaries", found["temporaries"], ", with the activations" * ("activations" in found)))
    if "unread" in found:
        rows.append(_row("unread", found["unread"], ", of the above: held for other programs"))
    name = "sum" if "parts" in found else "peak"
    rows.append((name, f"{found['peak'] / 1e9:.3f}", f"{_room(found['memory'])}GB{verdict}"))
    lines += _table(rows).splitlines()
    rows = []
    for row in sorted(found["collectives"], key=lambda row: -row["bytes"]):
        note = ", between slices" * row["network"]
        if row["looped"]:
            note += f", {found['rounds']} times a step" if found["rounds"] > 1 else ", in a loop, counted once"
        rows.append((str(row["count"]), row["kind"], row["dtype"], *_row("", row["bytes"], note)[1:]))
    lines += _table(rows, "><<>").splitlines()
    return lines + (_roofline_lines(found["roofline"]) if "overlapped" in found.get("roofline", ()) else [])


def _parts_lines(found, source):
    parts = sorted(found["parts"], key=lambda part: -part["count"] * part["accessed"])
    most = max(parts, key=lambda part: part["temporaries"])["name"]
    lines = [f"composed of {len(parts)} programs, compiled by {found['compiler']}, {source}; most bytes are moved by"]
    rows = [(f"{part['count']:.0f}", part["name"], f"{part['accessed'] / 1e9:.2f}", "GB each") for part in parts[:5]]
    lines += _table(rows, "><>").splitlines()
    rows = [_row("gradients", found["gradients"], ", of what is trained")]
    rows.append(_row("temporaries", found["temporaries"], f", most in {most}"))
    return lines, rows


def _roofline_lines(limits):
    parts = [name for name in ("compute", "memory", "links", "network") if name in limits]
    told = {name: "unknown" if limits[name] is None else f"{limits[name]:.4f} s" for name in parts}
    times = ", ".join(f"{name} {seconds}" for name, seconds in told.items())
    lines = [f"roofline: {times}"]
    for name, words in (("overlapped", "collectives behind compute"), ("in_turn", "collectives in turn")):
        row = limits[name]
        lines.append(
            f"  {words}: {row['seconds']:.4f} s or more, MFU up to {row['mfu']:.0%}, {row['clips']:.1f} clips/s"
        )
        if "input" in row:
            lines[-1] += f", {row['input'] / 1e6:.1f} MB/s of input"
    return lines

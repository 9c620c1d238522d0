"""The text that `emo plan` prints."""

from collections.abc import Mapping, Sequence
from typing import Any

from emo_jax.tables import format_table

Plan = Mapping[str, Any]
Row = tuple[str, ...]


def counted_lines(plan: Plan) -> list[str]:
    """Formats what `plan.count_program` counted."""
    mesh = ", ".join(f"{name} {size}" for name, size in plan["mesh"].items() if size > 1) or "one device"
    title = f"step of stage {plan['stage']}" if plan["program"] == "step" else "guided denoising step"
    chips = f"{plan['chips'] + plan['idle']} x {plan['kind']}"
    topology = f"{plan['slices']} x {plan['topology']}" if plan["slices"] > 1 else plan["topology"]
    lines = [f"{title} on {topology} ({chips}; {mesh}; clips: {plan['clips']})", "counted from shapes:"]
    sizes = plan["bytes"].items()
    rows = [_row(name, size["held"], f", of {size['total'] / 1e9:.3f} in total") for name, size in sizes]
    if "activations" in plan:
        rows.append(_row("activations", plan["activations"], ", kept for the backward pass"))
    held, memory = plan["held"], plan["memory"]
    total, verdict = held + plan.get("activations", 0), ""
    if memory is not None and total > memory:
        verdict = ": does NOT fit" if held > memory else ": fits only if the compiler recomputes activations"
    rows.append(("sum", f"{total / 1e9:.3f}", f"{_of_memory(memory)}GB{verdict}"))
    lines += _table(rows)
    if plan["idle"]:
        lines.append(f"  idle: {plan['idle']} chips, which guidance passes x frames of a clip do not divide over")
    seconds = f"; {plan['roofline']['compute']:.4f} s at their peak rate" if "roofline" in plan else ""
    computed = f", {plan['computed'] / 1e12:.1f} T with recomputation" if plan["program"] == "step" else ""
    lines.append(f"  useful FLOPs of all chips {plan['flops'] / 1e12:.1f} T{computed}{seconds}")
    return lines


def compiled_lines(plan: Plan) -> list[str]:
    """Formats what `plan.compile_program` added."""
    if plan["peak"] is None:
        return [f"does not fit: {plan['why']}"]
    verdict = {None: "", True: ": fits", False: ": does NOT fit"}[plan["fits"]]
    if plan["memory"] is not None and plan["fits"] is None:
        verdict = ": too close to decide; compile it without --composed"
    source = _source(plan)
    if "parts" in plan:
        lines, rows = _parts_lines(plan, source)
    else:
        lines = [f"compiled by {plan['compiler']}, {source}:"]
        rows = [_row("arguments", plan["arguments"], ", the arrays above that the program reads")]
        rows.append(_row("temporaries", plan["temporaries"], ", including activations" * ("activations" in plan)))
    if "unread" in plan:
        rows.append(_row("unread", plan["unread"], ", the arrays above that only other programs read"))
    name = "sum" if "parts" in plan else "peak"
    rows.append((name, f"{plan['peak'] / 1e9:.3f}", f"{_of_memory(plan['memory'])}GB{verdict}"))
    lines += _table(rows)
    rows = []
    for row in sorted(plan["collectives"], key=lambda row: -row["bytes"]):
        note = ", between slices" * row["network"]
        if row["looped"]:
            note += f", {plan['rounds']} times a step" if plan["rounds"] > 1 else ", in a loop, counted once"
        rows.append((str(row["count"]), row["kind"], row["dtype"], *_row("", row["bytes"], note)[1:]))
    lines += _table(rows, "><<>")
    return lines + (_roofline_lines(plan["roofline"]) if "overlapped" in plan.get("roofline", ()) else [])


def _source(plan: Plan) -> str:
    if plan["cached"]:
        return "from the cache"
    source = f"in {plan['seconds']:.0f} s"
    if 0 < plan.get("compiled", 0) < len(plan.get("parts", ())):
        source += f" ({plan['compiled']} of them, the others from the cache)"
    return source


def _row(name: str, size: float, remark: str) -> Row:
    return name, f"{size / 1e9:.3f}", f"GB a chip{remark}"


def _table(rows: Sequence[Row], align: str = "<>") -> list[str]:
    return format_table(rows, align=align, indent="  ").splitlines()


def _of_memory(memory: float | None) -> str:
    return "" if memory is None else f"of {memory / 1e9:.1f} "


def _parts_lines(plan: Plan, source: str) -> tuple[list[str], list[Row]]:
    parts = sorted(plan["parts"], key=lambda part: -part["count"] * part["accessed"])
    largest = max(parts, key=lambda part: part["temporaries"])["name"]
    lines = [f"composed of {len(parts)} programs, compiled by {plan['compiler']}, {source}; most memory traffic:"]
    rows = [(f"{part['count']:.0f}", part["name"], f"{part['accessed'] / 1e9:.2f}", "GB each") for part in parts[:5]]
    lines += _table(rows, "><>")
    rows = [_row("gradients", plan["gradients"], ", of the trained parameters")]
    rows.append(_row("temporaries", plan["temporaries"], f", of the largest part, {largest}"))
    return lines, rows


def _roofline_lines(limits: Mapping[str, Any]) -> list[str]:
    names = [name for name in ("compute", "memory", "links", "network") if name in limits]
    seconds = [f"{name} " + ("unknown" if limits[name] is None else f"{limits[name]:.4f} s") for name in names]
    lines = [f"roofline: {', '.join(seconds)}"]
    for name, title in (("overlapped", "collectives overlapped"), ("in_turn", "collectives not overlapped")):
        row = limits[name]
        lines.append(
            f"  {title}: {row['seconds']:.4f} s or more, MFU up to {row['mfu']:.0%}, {row['clips']:.1f} clips/s"
        )
        if "input" in row:
            lines[-1] += f", {row['input'] / 1e6:.1f} MB/s of input"
    return lines

"""The subcommands of `fastcrystal data` that make stores and files out of stores."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcrystal.cli.options import add_settings, with_settings

if TYPE_CHECKING:
    from fastcrystal.data.store import Store

#: sides of a split, in the order of the fractions
SIDES = ("train", "val", "test")


def add_stores(kinds: Any) -> None:
    """`select`, `split`, `merge` and `export`."""
    s = kinds.add_parser("select", help="a view of a store: some of its crystals, nothing copied")
    s.set_defaults(run_command=_select)
    s.add_argument("store", type=Path)
    s.add_argument("--out", type=Path, required=True, help="folder of the view")
    s.add_argument("--elements", nargs="+", default=(), metavar="SYMBOL", help="all of these must be in it")
    add_settings(s, file=False)

    p = kinds.add_parser("split", help="views of a store to train, validate and test on, no formula in two of them")
    p.set_defaults(run_command=_split)
    p.add_argument("store", type=Path)
    p.add_argument("--out", type=Path, required=True, help="folder of the views train, val and test")
    p.add_argument("--fractions", nargs=3, type=float, default=(0.8, 0.1, 0.1), metavar="SHARE")
    p.add_argument("--seed", type=int, default=42)

    m = kinds.add_parser("merge", help="one store of several, nothing copied on one file system")
    m.set_defaults(run_command=_merge)
    m.add_argument("stores", type=Path, nargs="+", metavar="STORE")
    m.add_argument("--out", type=Path, required=True)

    e = kinds.add_parser("export", help="a store or view as .parquet, .extxyz or .npz")
    e.set_defaults(run_command=_export)
    e.add_argument("store", type=Path)
    e.add_argument("out", type=Path, help="the ending says the format")


@dataclass(frozen=True)
class SelectSettings:
    """Criteria of `fastcrystal data select`; None: any."""

    elements: tuple[str, ...] | None = None
    """Elements that must all be in it."""
    only_elements: tuple[str, ...] | None = None
    """Elements besides which there must be no other."""
    formulas: tuple[str, ...] | None = None
    """Reduced formulas, in any order of elements."""
    groups: tuple[int, ...] | None = None
    """Space-group numbers."""
    energy: tuple[float, float] | None = None
    """Lowest and highest formation energy, eV/atom."""
    sites: tuple[int, int] | None = None
    """Fewest and most sites."""
    labels: tuple[str, ...] | None = None
    """Collections (`data info` lists them)."""


def _select(args: argparse.Namespace) -> None:
    from fastcrystal.data.store import open_store

    criteria = with_settings(args, SelectSettings(tuple(args.elements) or None))
    store = open_store(args.store)
    view = store.where(**asdict(criteria))
    if not len(view):
        raise ValueError(f"none of the {len(store)} crystals in {args.store} is like that")
    view.save_view(args.out)
    print(f"{len(view)} of {len(store)} crystals: {args.out}")


def _split(args: argparse.Namespace) -> None:
    from fastcrystal.data.splits import split_by_formula
    from fastcrystal.data.store import open_store
    from fastcrystal.utils.files import refuse_existing

    store = open_store(args.store)
    split = split_by_formula(store, args.fractions, args.seed)
    for side, share in zip(SIDES, args.fractions, strict=True):
        if share and not len(getattr(split, side)):
            raise ValueError(
                f"{args.store} has too few formulas ({len(store.formulas[0])}) to split: none is left for {side}"
            )
        refuse_existing(args.out / side)
    for side in SIDES:
        view: Store = store.select(getattr(split, side))
        view.save_view(args.out / side)
        print(f"{args.out / side}: {len(view)} crystals of {len(view.formulas[0])} formulas")


def _merge(args: argparse.Namespace) -> None:
    from fastcrystal.data.store.merge import merge_stores

    store = merge_stores(args.stores, args.out)
    print(f"{len(store)} crystals of {len(args.stores)} stores: {args.out}")


def _export(args: argparse.Namespace) -> None:
    from fastcrystal.data.store import open_store
    from fastcrystal.data.store.export import export

    store = open_store(args.store)
    export(store, args.out)
    print(f"{len(store)} crystals: {args.out} ({args.out.stat().st_size / 1e6:.1f} MB)")

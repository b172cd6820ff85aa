"""vasprun.xml as VASP writes it, with only what pymatgen asks for: by hand, for tests."""

from __future__ import annotations

from fastcrystal.features.elements import SYMBOLS
from fastcrystal.relaxation.candidate import Candidate

ENERGIES = ("e_fr_energy", "e_wo_entrp", "e_0_energy")


def vasprun(c: Candidate, energy: float, ionic_steps: int = 3, electronic_steps: int = 5, encut: float = 500) -> str:
    """A finished relaxation of a candidate to `energy` (eV, of the cell); NSW is 99 and NELM 100."""
    symbols = [SYMBOLS[z] for z in c.crystal.species]
    kinds = sorted(set(symbols), key=symbols.index)
    atoms = "".join(f"<rc><c>{s:2}</c><c>{kinds.index(s) + 1:4}</c></rc>" for s in symbols)
    types = "".join(
        f"<rc><c>{symbols.count(k):4}</c><c>{k:2}</c><c>1.0</c><c>1.0</c><c> PAW_PBE {k} 01Jan2001 </c></rc>"
        for k in kinds
    )
    crystal = f"""<crystal><varray name="basis">{_rows(c.crystal.lattice.tolist())}</varray><i name="volume">1.0</i>
    <varray name="rec_basis">{_rows(c.crystal.lattice.tolist())}</varray></crystal>
    <varray name="positions">{_rows(c.crystal.frac.tolist())}</varray>"""
    scf = "<scstep><energy>" + "".join(f'<i name="{n}">0.0</i>' for n in ENERGIES) + "</energy></scstep>"
    zeros = _rows([[0.0, 0.0, 0.0]] * len(symbols))
    step = f"""<calculation>{scf * electronic_steps}<structure>{crystal}</structure>
    <varray name="forces">{zeros}</varray><varray name="stress">{_rows([[0.0] * 3] * 3)}</varray>
    <energy>{"".join(f'<i name="{n}">{energy}</i>' for n in ENERGIES)}</energy>
    </calculation>"""
    return f"""<?xml version="1.0" encoding="ISO-8859-1"?>
<modeling>
 <generator><i name="program" type="string">vasp </i><i name="version" type="string">6.3.0 </i></generator>
 <incar><i name="ENCUT">{encut:.1f}</i><i type="int" name="NSW">99</i></incar>
 <kpoints><generation param="Gamma"><v type="int" name="divisions">2 2 2</v><v name="usershift">0 0 0</v></generation>
 <varray name="kpointlist"><v>0.0 0.0 0.0</v></varray><varray name="weights"><v>1.0</v></varray></kpoints>
 <parameters><separator name="general"><i name="ENMAX">{encut:.1f}</i><i type="int" name="NELM">100</i>
  <i type="int" name="NSW">99</i><i type="int" name="IBRION">2</i><i name="EDIFFG">-0.01</i>
  <i type="string" name="GGA">PE</i><i name="AEXX">0.0</i><i name="HFSCREEN">0.0</i>
  <i type="logical" name="LHFCALC">F</i>
  <i type="logical" name="LDAU">F</i><i type="string" name="METAGGA">--</i>
  <i type="int" name="ISPIN">2</i></separator></parameters>
 <atominfo><atoms>{len(symbols)}</atoms><types>{len(kinds)}</types>
 <array name="atoms"><dimension dim="1">ion</dimension><field type="string">element</field>
 <field type="int">atomtype</field><set>{atoms}</set></array>
 <array name="atomtypes"><dimension dim="1">type</dimension><field type="int">atomspertype</field>
 <field type="string">element</field><field>mass</field><field>valence</field>
 <field type="string">pseudopotential</field><set>{types}</set></array></atominfo>
 <structure name="initialpos">{crystal}</structure>
 {step * ionic_steps}
 <structure name="finalpos">{crystal}</structure>
</modeling>
"""


def _rows(values: list[list[float]]) -> str:
    return "".join("<v>" + " ".join(f"{x:.8f}" for x in row) + "</v>" for row in values)

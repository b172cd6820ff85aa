"""One HTML page about a discovery run, with all that it needs inside: `fastcrystal report RUN`.

    from fastcrystal.discovery.report import write_report
    page = write_report(Path("runs/discover-TaWB"))          # RUN/report.html

run_folder.py     what the stages left in the run folder
*_charts.py       plotly figures of it
viewer.py         atoms, bonds and cells of the best candidates, for plotly's 3-D scenes
tables.py         columns and rows of its tables
page.py           all of it as values for templates/page.html, with report.css, report.js and plotly.js
"""

from fastcrystal.discovery.report.page import write_report

__all__ = ["write_report"]

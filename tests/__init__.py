"""Tests; a package, because wheels exist that install a package `tests` of their own."""

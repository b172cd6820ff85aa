"""The command `fastcrystal`: one file a command."""

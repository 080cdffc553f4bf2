"""Who knows which items might do: the catalogue, what may be shown, and the paths that find candidates."""

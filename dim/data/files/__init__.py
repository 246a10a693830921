"""Folders, archives and downloads: the files of a source, read under limits."""

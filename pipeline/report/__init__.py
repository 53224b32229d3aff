"""The report people look at: results as pages that open from a disk, as Markdown, as plain text."""

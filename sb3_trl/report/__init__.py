"""From a table of results to estimates, Markdown and pictures: ``sb3-trl report``."""

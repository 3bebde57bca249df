"""The tables and figures of the papers, from study files to pictures: ``sb3-trl reproduce``."""

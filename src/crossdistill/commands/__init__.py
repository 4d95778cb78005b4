"""The sub-commands, one file each. Large libraries are imported only where they are needed."""

COMMANDS: dict[str, str] = {
    "demo": "crossdistill.commands.demo",
    "teacher": "crossdistill.commands.teacher",
    "fit": "crossdistill.commands.fit",
    "check": "crossdistill.commands.check",
    "cache": "crossdistill.commands.cache",
    "compare": "crossdistill.commands.compare",
    "report": "crossdistill.commands.report",
    "eval": "crossdistill.commands.evaluate",
    "inspect": "crossdistill.commands.inspect",
    "export": "crossdistill.commands.export",
    "predict": "crossdistill.commands.predict",
    "models": "crossdistill.commands.models",
    "methods": "crossdistill.commands.methods",
}
"""Names of the sub-commands, and the modules with their `run`."""

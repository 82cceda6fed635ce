from run_fixtures import build, config, data  # noqa: F401

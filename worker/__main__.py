"""``python -m worker`` runs a worker with the settings in the environment."""

import sys

from shared.errors import SettingsError
from shared.settings import load_settings
from worker.app import run_worker

if __name__ == "__main__":
    try:
        run_worker(load_settings())
    except SettingsError as error:
        sys.exit(str(error))

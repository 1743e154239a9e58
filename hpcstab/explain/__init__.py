"""Why a run ended as it did, or a log, or a checkpoint: causes from a closed list, each with its evidence; torch-free."""

"""Why a run, a log or a checkpoint is as it is: causes from a closed list, each with its evidence; torch-free."""

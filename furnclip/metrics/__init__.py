"""The mathematics of measuring: retrieval metrics, intervals, tests and standings; numpy only."""

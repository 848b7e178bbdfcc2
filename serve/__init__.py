"""The service: cohorts and single volumes over HTTP, a posterior for each case."""

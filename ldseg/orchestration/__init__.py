"""The part of ldseg that knows Ray and MLflow."""

"""From a trained model to :class:`etude.core.predictions.Predictions`, through one or several views."""

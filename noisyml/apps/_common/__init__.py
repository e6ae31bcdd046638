"""Steps that several verbs take."""
